{{/*
The shim's container and what goes with it. `agent-shim inject` makes the same; a test compares the two.
*/}}
{{- define "agent-shim.container" -}}
name: agent-shim
image: {{ include "agent-shim.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - run
{{- if .Values.sidecar.native }}
restartPolicy: Always
{{- end }}
env:
  - name: POD_IP
    valueFrom:
      fieldRef:
        fieldPath: status.podIP
  - name: POD_IPS
    valueFrom:
      fieldRef:
        fieldPath: status.podIPs
  - name: SHIM_MEMORY_REQUEST
    valueFrom:
      resourceFieldRef:
        containerName: {{ .Values.sidecar.inferenceContainer }}
        resource: requests.memory
  - name: SHIM_MEMORY_LIMIT
    valueFrom:
      resourceFieldRef:
        containerName: {{ .Values.sidecar.inferenceContainer }}
        resource: limits.memory
  - name: SHIM_SCHEDULER
    value: {{ include "agent-shim.schedulerAgent" . | quote }}
  - name: SHIM_SCHEDULER_STATUS
    value: {{ include "agent-shim.schedulerStatus" . | quote }}
{{- if .Values.scheduler.tls.enabled }}
  - name: SHIM_SCHEDULER_TLS
    value: "on"
  - name: SHIM_SCHEDULER_CA_FILE
    value: /etc/agent-shim/scheduler-ca/ca.crt
  - name: SHIM_SCHEDULER_CERT_FILE
    value: /etc/agent-shim/client/tls.crt
  - name: SHIM_SCHEDULER_KEY_FILE
    value: /etc/agent-shim/client/tls.key
{{- end }}
{{- with .Values.sidecar.env }}
{{- include "agent-shim.env" . | indent 2 }}
{{- end }}
ports:
  - name: shim-admin
    containerPort: 9680
    protocol: TCP
startupProbe:
  httpGet:
    path: /startupz
    port: shim-admin
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet:
    path: /readyz
    port: shim-admin
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet:
    path: /livez
    port: shim-admin
  periodSeconds: 10
  timeoutSeconds: 2
  failureThreshold: 3
resources:
  {{- toYaml .Values.sidecar.resources | nindent 2 }}
securityContext:
  {{- include "agent-shim.restricted" . | nindent 2 }}
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
{{- if .Values.scheduler.tls.enabled }}
volumeMounts:
  - name: agent-shim-client
    mountPath: /etc/agent-shim/client
    readOnly: true
  - name: agent-shim-scheduler-ca
    mountPath: /etc/agent-shim/scheduler-ca
    readOnly: true
{{- end }}
{{- end -}}

{{/* What the agent is told instead of server and scheduler. */}}
{{- define "agent-shim.agentEnv" -}}
- name: SELDON_SERVER_HTTP_PORT
  value: "9600"
- name: SELDON_SERVER_GRPC_PORT
  value: "9650"
- name: SELDON_SCHEDULER_HOST
  value: 127.0.0.1
- name: SELDON_SCHEDULER_PORT
  value: "9605"
{{- if .Values.scheduler.tls.enabled }}
- name: CONTROL_PLANE_SECURITY_PROTOCOL
  value: PLAINTEXT
{{- end }}
{{- end -}}

{{- define "agent-shim.volumes" -}}
- name: agent-shim-client
  secret:
    secretName: {{ .Values.scheduler.tls.clientSecret }}
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
- name: agent-shim-scheduler-ca
  secret:
    secretName: {{ .Values.scheduler.tls.caSecret }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end -}}

{{/* The podSpec fragment: what is laid over a ServerConfig's podSpec. */}}
{{- define "agent-shim.podSpec" -}}
{{- if .Values.sidecar.native }}
initContainers:
  - {{- include "agent-shim.container" . | nindent 4 }}
{{- end }}
containers:
  - name: {{ .Values.sidecar.agentContainer }}
    env:
      {{- include "agent-shim.agentEnv" . | nindent 6 }}
{{- if not .Values.sidecar.native }}
  - {{- include "agent-shim.container" . | nindent 4 }}
{{- end }}
{{- if .Values.scheduler.tls.enabled }}
volumes:
  {{- include "agent-shim.volumes" . | nindent 2 }}
{{- end }}
{{- if .Values.sidecar.shareProcessNamespace }}
shareProcessNamespace: true
{{- end }}
{{- end -}}
