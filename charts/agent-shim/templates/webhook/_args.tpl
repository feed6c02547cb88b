{{/* What the webhook puts into pods: the same words as for `agent-shim inject`. */}}
{{- define "agent-shim.webhookArgs" -}}
- --tls-cert=/etc/agent-shim/tls/tls.crt
- --tls-key=/etc/agent-shim/tls/tls.key
- --image={{ include "agent-shim.image" . }}
{{- end -}}
