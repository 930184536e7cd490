{{- define "agenthive.name" -}}
{{- if contains "agenthive" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-agenthive" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Cluster-wide names carry the namespace: two releases may have one name in two namespaces. */}}
{{- define "agenthive.clusterName" -}}
{{ .Release.Namespace }}:{{ include "agenthive.name" . }}
{{- end }}

{{- define "agenthive.selector" -}}
app.kubernetes.io/name: agenthive-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "agenthive.labels" -}}
{{ include "agenthive.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "agenthive.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "agenthive.name" .) }}{{ else }}{{ required "serviceAccount.create is false: write the account's name in serviceAccount.name" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "agenthive.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}{{ with .tag }}:{{ . }}{{ end }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "agenthive.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "agenthive.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
