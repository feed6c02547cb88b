{{/*
The shim's container and what goes with it. `agent-shim inject` makes the same; a test compares the two.
*/}}

{{/* A setting of the shim: sidecar.env's, else the program's own default, which is given. */}}
{{- define "agent-shim.setting" -}}
{{- $root := index . 0 -}}
{{- get $root.Values.sidecar.env (index . 1) | default (index . 2) | toString -}}
{{- end -}}

{{/* The address at which the agent finds the shim: the first that it listens on. */}}
{{- define "agent-shim.listenHost" -}}
{{- $first := include "agent-shim.setting" (list . "SHIM_RELAY_LISTEN" "127.0.0.1") | splitList "," | first | trim -}}
{{- if eq $first "0.0.0.0" -}}127.0.0.1{{- else if eq $first "::" -}}::1{{- else -}}{{ $first }}{{- end -}}
{{- end -}}

{{/* Not empty where the agent's way to the scheduler goes through the shim; an empty SHIM_SCHEDULER ends that, too. */}}
{{- define "agent-shim.interposes" -}}
{{- $off := and (hasKey .Values.sidecar.env "SHIM_SCHEDULER") (eq "" (trim (get .Values.sidecar.env "SHIM_SCHEDULER"))) -}}
{{- if and .Values.scheduler.interpose (not $off) }}yes{{ end -}}
{{- end -}}

{{- define "agent-shim.container" -}}
{{- $admin := include "agent-shim.setting" (list . "SHIM_ADMIN_PORT" "9680") -}}
name: agent-shim
image: {{ include "agent-shim.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
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
  {{- include "agent-shim.memory" (list . "SHIM_MEMORY_REQUEST" "requests.memory") }}
  {{- include "agent-shim.memory" (list . "SHIM_MEMORY_LIMIT" "limits.memory") }}
  {{- if include "agent-shim.drains" . }}
  {{- include "agent-shim.derived" (list . "SHIM_DRAIN_ENDPOINT" "true") }}
  {{- include "agent-shim.derived" (list . "SHIM_DRAIN_HOOKS" "2") }}
  {{- end }}
  {{- if include "agent-shim.interposes" . }}
  {{- if .Values.scheduler.tls.enabled }}
  {{- include "agent-shim.derived" (list . "SHIM_SCHEDULER_TLS" "on") }}
  {{- include "agent-shim.derived" (list . "SHIM_SCHEDULER_CA_FILE" "/etc/agent-shim/tls/server/ca.crt") }}
  {{- include "agent-shim.derived" (list . "SHIM_SCHEDULER_CERT_FILE" "/etc/agent-shim/tls/client/tls.crt") }}
  {{- include "agent-shim.derived" (list . "SHIM_SCHEDULER_KEY_FILE" "/etc/agent-shim/tls/client/tls.key") }}
  {{- end }}
  {{- include "agent-shim.derived" (list . "SHIM_SCHEDULER" (include "agent-shim.schedulerAgent" .)) }}
  {{- include "agent-shim.derived" (list . "SHIM_SCHEDULER_STATUS" (include "agent-shim.schedulerStatus" .)) }}
  {{- end }}
  {{- $rest := omit .Values.sidecar.env "SHIM_MEMORY_REQUEST" "SHIM_MEMORY_LIMIT" }}
  {{- if include "agent-shim.interposes" . }}{{ $rest = omit $rest "SHIM_SCHEDULER" "SHIM_SCHEDULER_STATUS" }}{{ end }}
  {{- if include "agent-shim.tls" . }}{{ $rest = omit $rest "SHIM_SCHEDULER_TLS" "SHIM_SCHEDULER_CA_FILE" "SHIM_SCHEDULER_CERT_FILE" "SHIM_SCHEDULER_KEY_FILE" }}{{ end }}
  {{- if include "agent-shim.drains" . }}{{ $rest = omit $rest "SHIM_DRAIN_ENDPOINT" "SHIM_DRAIN_HOOKS" }}{{ end }}
  {{- with $rest }}
  {{- include "agent-shim.env" . | indent 2 }}
  {{- end }}
ports:
  - name: shim-admin
    containerPort: {{ $admin }}
    protocol: TCP
resources:
  {{- toYaml .Values.sidecar.resources | nindent 2 }}
# Never waits for the server: that one may not even have started.
startupProbe:
  httpGet:
    path: /startupz
    port: {{ $admin }}
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: {{ .Values.sidecar.startupSeconds }}
readinessProbe:
  httpGet:
    path: /readyz
    port: {{ $admin }}
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
# Slow: a restart of the shim cuts every call it carries.
livenessProbe:
  httpGet:
    path: /livez
    port: {{ $admin }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
securityContext:
  {{- include "agent-shim.restricted" . | nindent 2 }}
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
terminationMessagePolicy: FallbackToLogsOnError
{{- if or .modelsVolume (include "agent-shim.tls" .) }}
volumeMounts:
{{- end }}
{{- with .modelsVolume }}
  # To see whether the files of a model have changed; to write only where the shim puts a model of its own there.
  - name: {{ . }}
    mountPath: /mnt/agent
    {{- if ne (include "agent-shim.setting" (list $ "SHIM_CAPABILITIES_PROBE" "false")) "true" }}
    readOnly: true
    {{- end }}
{{- end }}
{{- if include "agent-shim.tls" . }}
  - name: agent-shim-tls-client
    mountPath: /etc/agent-shim/tls/client
    readOnly: true
  - name: agent-shim-tls-server
    mountPath: /etc/agent-shim/tls/server
    readOnly: true
{{- end }}
{{- end -}}

{{/* Not empty where the shim speaks TLS to the scheduler. */}}
{{- define "agent-shim.tls" -}}
{{- if and (include "agent-shim.interposes" .) .Values.scheduler.tls.enabled }}yes{{ end -}}
{{- end -}}

{{/* A variable that sidecar.env may replace, in its place: no name may stand twice. */}}
{{- define "agent-shim.derived" -}}
{{- $env := (index . 0).Values.sidecar.env }}
  - name: {{ index . 1 }}
    value: {{ ternary (get $env (index . 1)) (index . 2) (hasKey $env (index . 1)) | quote }}
{{- end -}}

{{- define "agent-shim.memory" -}}
{{- $root := index . 0 }}
  - name: {{ index . 1 }}
{{- if hasKey $root.Values.sidecar.env (index . 1) }}
    value: {{ get $root.Values.sidecar.env (index . 1) | quote }}
{{- else }}
    valueFrom:
      resourceFieldRef:
        containerName: {{ $root.Values.sidecar.inferenceContainer }}
        resource: {{ index . 2 }}
{{- end -}}
{{- end -}}

{{/* What the agent is told instead of server and scheduler. */}}
{{- define "agent-shim.agentEnv" -}}
- name: SELDON_SERVER_HTTP_PORT
  value: {{ include "agent-shim.setting" (list . "SHIM_RELAY_HTTP_PORT" "9600") | quote }}
- name: SELDON_SERVER_GRPC_PORT
  value: {{ include "agent-shim.setting" (list . "SHIM_RELAY_GRPC_PORT" "9650") | quote }}
{{- if include "agent-shim.interposes" . }}
- name: SELDON_SCHEDULER_HOST
  value: {{ include "agent-shim.listenHost" . | quote }}
- name: SELDON_SCHEDULER_PORT
  value: {{ include "agent-shim.setting" (list . "SHIM_AGENT_PORT" "9605") | quote }}
{{- if .Values.scheduler.tls.enabled }}
- name: CONTROL_PLANE_SECURITY_PROTOCOL
  value: PLAINTEXT
{{- end }}
{{- end }}
{{- end -}}

{{/* The agent reads secrets through the API; the shim has no token, so the pod mounts what it reads: the server's secret also holds the scheduler's private key. */}}
{{- define "agent-shim.volumes" -}}
- name: agent-shim-tls-client
  secret:
    secretName: {{ .Values.scheduler.tls.clientSecret }}
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
- name: agent-shim-tls-server
  secret:
    secretName: {{ .Values.scheduler.tls.caSecret }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end -}}

{{/* Restarts an agent that has given up without ending; the shim judges it. */}}
{{- define "agent-shim.watchdog" -}}
livenessProbe:
  httpGet:
    path: /livez/agent
    port: {{ include "agent-shim.setting" (list . "SHIM_ADMIN_PORT" "9680") }}
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 4
{{- end -}}

{{/* Not empty where the containers get the shim's hook; in mode observe /drain does nothing, and Seldon's own hooks are needed. */}}
{{- define "agent-shim.drains" -}}
{{- $mode := get .Values.sidecar.env "SHIM_MODE" | default "correct" | toString | trim -}}
{{- if and .Values.sidecar.drainHook (ne $mode "observe") }}yes{{ end -}}
{{- end -}}

{{/* Holds a container's SIGTERM back until the shim has drained. */}}
{{- define "agent-shim.drain" -}}
preStop:
  httpGet:
    path: /drain
    port: {{ include "agent-shim.setting" (list . "SHIM_ADMIN_PORT" "9680") }}
{{- end -}}

{{/* The podSpec fragment: what is laid over a ServerConfig's podSpec. */}}
{{- define "agent-shim.podSpec" -}}
{{- if .Values.sidecar.native }}
initContainers:
  - {{ include "agent-shim.container" . | indent 4 | trim }}
{{- end }}
containers:
  - name: {{ .Values.sidecar.agentContainer }}
    env:
      {{- include "agent-shim.agentEnv" . | nindent 6 }}
    {{- if .Values.sidecar.agentWatchdog }}
    {{- include "agent-shim.watchdog" . | nindent 4 }}
    {{- end }}
  {{- if include "agent-shim.drains" . }}
    lifecycle:
      {{- include "agent-shim.drain" . | nindent 6 }}
  - name: {{ .Values.sidecar.inferenceContainer }}
    lifecycle:
      {{- include "agent-shim.drain" . | nindent 6 }}
  {{- end }}
{{- if not .Values.sidecar.native }}
  - {{ include "agent-shim.container" . | indent 4 | trim }}
{{- end }}
{{- if include "agent-shim.tls" . }}
volumes:
  {{- include "agent-shim.volumes" . | nindent 2 }}
{{- end }}
{{- if .Values.sidecar.shareProcessNamespace }}
shareProcessNamespace: true
{{- end }}
{{- end -}}
