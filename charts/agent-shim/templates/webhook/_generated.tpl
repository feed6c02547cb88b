{{/*
Authority, certificate and key, in base64, for certificates.mode generate: those in the cluster where they are there,
else new ones, once for each rendering. Without a cluster they would differ at each rendering, so that is refused.
*/}}
{{- define "agent-shim.generated" -}}
{{- if eq .Values.certificates.mode "generate" -}}
{{- if not (hasKey .Values "_material") -}}
{{- $known := lookup "v1" "Secret" .Release.Namespace (include "agent-shim.certificateSecret" .) -}}
{{- $data := dict -}}
{{- with $known }}{{ $data = default dict .data }}{{ end -}}
{{- if and (get $data "tls.crt") (get $data "tls.key") (get $data "ca.crt") -}}
{{- $_ := set .Values "_material" (pick $data "tls.crt" "tls.key" "ca.crt") -}}
{{- else if not (lookup "v1" "Namespace" "" "kube-system") -}}
{{- fail "\n\ncertificates.mode generate needs a cluster to look in, and there is none here (helm template, a dry run on the client, GitOps).\nUse certificates.mode cert-manager or existingSecret, or install with helm install." -}}
{{- else -}}
{{- $name := include "agent-shim.webhookName" . -}}
{{- $names := list (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) -}}
{{- $days := int .Values.certificates.days -}}
{{- $ca := genCA (printf "%s-ca" $name) $days -}}
{{- $cert := genSignedCert (index $names 0) nil $names $days $ca -}}
{{- $_ := set .Values "_material" (dict "tls.crt" ($cert.Cert | b64enc) "tls.key" ($cert.Key | b64enc) "ca.crt" ($ca.Cert | b64enc)) -}}
{{- end -}}
{{- end -}}
{{- toYaml (get .Values "_material") -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}
