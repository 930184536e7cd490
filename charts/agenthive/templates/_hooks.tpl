{{/* What hooks have in common. A hook is a dict: root, event (when Helm runs it) and name. */}}

{{/* Not those of the operator's pods: Deployment, Service and NetworkPolicy select by them. */}}
{{- define "agenthive.hookLabels" -}}
app.kubernetes.io/name: agenthive-hook
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "agenthive.hookAnnotations" -}}
helm.sh/hook: {{ .hook.event }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- define "agenthive.hookAccount" }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "agenthive.hookLabels" . | nindent 4 }}
  annotations: {{- include "agenthive.hookAnnotations" (dict "hook" . "weight" "-2") | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

{{/* A Role with rules in a namespace, bound to the hook's account; with lasting it is there as long as the release. */}}
{{- define "agenthive.hookRole" }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ .hook.name }}{{ .suffix }}
  namespace: {{ .namespace }}
  labels: {{- include "agenthive.hookLabels" .hook | nindent 4 }}
  {{- if not .lasting }}
  annotations: {{- include "agenthive.hookAnnotations" (dict "hook" .hook "weight" "-1") | nindent 4 }}
  {{- end }}
rules: {{- toYaml .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .hook.name }}{{ .suffix }}
  namespace: {{ .namespace }}
  labels: {{- include "agenthive.hookLabels" .hook | nindent 4 }}
  {{- if not .lasting }}
  annotations: {{- include "agenthive.hookAnnotations" (dict "hook" .hook "weight" "-1") | nindent 4 }}
  {{- end }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .hook.name }}{{ .suffix }}}
subjects:
  - {kind: ServiceAccount, name: {{ .hook.name }}, namespace: {{ .hook.root.Release.Namespace }}}
{{- end }}

{{- define "agenthive.hookPod" -}}
restartPolicy: Never
serviceAccountName: {{ .name }}
automountServiceAccountToken: true
securityContext: {{- include "agenthive.podSecurity" . | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
{{- end }}

{{- define "agenthive.hookContainer" -}}
image: {{ include "agenthive.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.extraEnv }}
env: {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  requests: {cpu: 50m, memory: 96Mi}
  limits: {memory: 256Mi}
securityContext: {{- include "agenthive.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
{{- end }}
