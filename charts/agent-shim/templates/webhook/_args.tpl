{{/* What the webhook puts into pods: the same words as for `agent-shim inject`. */}}
{{- define "agent-shim.webhookArgs" -}}
- --image={{ include "agent-shim.image" . }}
- --exclude-namespaces={{ join "," .Values.webhook.excludedNamespaces }}
- --allow-overrides={{ .Values.webhook.allowOverrides }}
- --log={{ .Values.webhook.log.level }}
- --log-format={{ .Values.webhook.log.format }}
{{- range .Values.webhook.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}
