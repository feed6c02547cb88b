{{- define "agent-shim.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "agent-shim.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "agent-shim.webhookName" -}}
{{- printf "%s-webhook" (include "agent-shim.fullname" .) -}}
{{- end -}}

{{- define "agent-shim.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "agent-shim.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: agent-shim
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "agent-shim.selectorLabels" -}}
app.kubernetes.io/name: {{ include "agent-shim.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The operator copies labels of Server and ServerConfig to its objects and writes its own app.kubernetes.io/name into pods, so a Server gets none that it would fight over. */}}
{{- define "agent-shim.seldonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: agent-shim
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "agent-shim.image" -}}
{{- $i := .Values.image -}}
{{- $name := $i.repository -}}
{{- with $i.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if $i.digest -}}
{{- printf "%s@%s" $name $i.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion $i.tag) -}}
{{- end -}}
{{- end -}}

{{/* A map of variables as a list, in the order of their names. */}}
{{- define "agent-shim.env" -}}
{{- range $name := keys . | sortAlpha }}
- name: {{ $name }}
  value: {{ get $ $name | toString | quote }}
{{- end }}
{{- end -}}

{{- define "agent-shim.restricted" -}}
allowPrivilegeEscalation: false
capabilities:
  drop:
    - ALL
{{- end -}}

{{- define "agent-shim.schedulerHost" -}}
{{- default "seldon-scheduler" .Values.scheduler.host -}}
{{- end -}}

{{/* An IPv6 address is written in brackets where a port follows. */}}
{{- define "agent-shim.hostPort" -}}
{{- $host := index . 0 -}}
{{- if and (contains ":" $host) (not (hasPrefix "[" $host)) -}}
{{- printf "[%s]:%v" $host (index . 1) -}}
{{- else -}}
{{- printf "%s:%v" $host (index . 1) -}}
{{- end -}}
{{- end -}}

{{- define "agent-shim.schedulerAgent" -}}
{{- $port := int .Values.scheduler.port -}}
{{- if not $port }}{{ $port = ternary 9055 9005 .Values.scheduler.tls.enabled }}{{ end -}}
{{- include "agent-shim.hostPort" (list (include "agent-shim.schedulerHost" .) $port) -}}
{{- end -}}

{{- define "agent-shim.schedulerStatus" -}}
{{- $port := int .Values.scheduler.statusPort -}}
{{- if not $port }}{{ $port = ternary 9044 9004 .Values.scheduler.tls.enabled }}{{ end -}}
{{- $host := include "agent-shim.schedulerHost" . -}}
{{- $own := get .Values.sidecar.env "SHIM_SCHEDULER" | default "" -}}
{{- if and $own (not .Values.scheduler.host) -}}
{{- $host = regexReplaceAll ":[0-9]+$" (splitList "," $own | first | trim) "" -}}
{{- end -}}
{{- include "agent-shim.hostPort" (list $host $port) -}}
{{- end -}}

{{- define "agent-shim.certificateSecret" -}}
{{- if eq .Values.certificates.mode "existingSecret" -}}
{{- required "certificates.secretName: name the secret with tls.crt and tls.key that certificates.mode existingSecret is about" .Values.certificates.secretName -}}
{{- else -}}
{{- default (printf "%s-tls" (include "agent-shim.webhookName" .)) .Values.certificates.secretName -}}
{{- end -}}
{{- end -}}
