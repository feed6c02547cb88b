{{/* What the webhook puts into pods: the flags of `agent-shim inject`, from the same values as in the other modes. */}}
{{- define "agent-shim.webhookArgs" -}}
- --image={{ include "agent-shim.image" . }}
- --image-pull-policy={{ .Values.image.pullPolicy }}
{{- if not .Values.sidecar.native }}
- --plain
{{- end }}
{{- range $part := list "requests" "limits" }}
{{- $r := get $.Values.sidecar.resources $part }}
- --{{ $part }}=cpu={{ $r.cpu }},memory={{ $r.memory }}
{{- end }}
- --startup-seconds={{ .Values.sidecar.startupSeconds }}
- --agent-container={{ .Values.sidecar.agentContainer }}
- --inference-container={{ .Values.sidecar.inferenceContainer }}
{{- if .Values.sidecar.shareProcessNamespace }}
- --share-process-namespace
{{- end }}
{{- if .Values.sidecar.agentWatchdog }}
- --agent-watchdog
{{- end }}
{{- if .Values.sidecar.drainHook }}
- --drain-hook
{{- end }}
{{- if not .Values.scheduler.interpose }}
- --no-scheduler
{{- else }}
{{- if .Values.scheduler.host }}
- --scheduler={{ include "agent-shim.schedulerAgent" . }}
- --scheduler-status={{ include "agent-shim.schedulerStatus" . }}
{{- else if or .Values.scheduler.port .Values.scheduler.statusPort }}
{{- fail "scheduler.port and scheduler.statusPort are about scheduler.host: set that, too, or leave all three to what the agent of each pod has" }}
{{- end }}
{{- if .Values.scheduler.tls.enabled }}
- --tls-client-secret={{ .Values.scheduler.tls.clientSecret }}
- --tls-server-secret={{ .Values.scheduler.tls.caSecret }}
{{- end }}
{{- end }}
{{- range $name := keys .Values.sidecar.env | sortAlpha }}
- {{ printf "--set=%s=%s" $name (get $.Values.sidecar.env $name) | quote }}
{{- end }}
- --exclude-namespaces={{ join "," .Values.webhook.excludedNamespaces }}
- --allow-overrides={{ .Values.webhook.allowOverrides }}
- --log={{ .Values.webhook.log.level }}
- --log-format={{ .Values.webhook.log.format }}
{{- range .Values.webhook.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}
