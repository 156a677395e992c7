{{- define "bulkgrpc.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "bulkgrpc.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bulkgrpc.labels" -}}
{{ include "bulkgrpc.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "bulkgrpc.image" -}}
{{- $image := .Values.image -}}
{{- if not $image.repository }}{{ fail "image.repository is required: an image with `pip install \"bulkgrpc[service]\"`" }}{{ end -}}
{{- if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest }}{{ else }}{{ printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) }}{{ end -}}
{{- end }}

{{- define "bulkgrpc.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "bulkgrpc.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Environment variables: of all processes, then those of one, which take precedence. Context: root, own. */}}
{{- define "bulkgrpc.env" -}}
{{- $settings := merge (dict) .own .root.Values.settings }}
{{- range $name, $value := $settings }}
- name: BULKGRPC_{{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
- name: HOME
  value: /tmp
{{- end }}

{{- define "bulkgrpc.envFrom" -}}
{{- with . }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
{{- end }}

{{- define "bulkgrpc.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- range $index, $files := .Values.files }}
- name: files-{{ $index }}
  mountPath: {{ $files.path }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "bulkgrpc.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- range $index, $files := .Values.files }}
- name: files-{{ $index }}
  {{- if $files.secret }}
  secret:
    secretName: {{ $files.secret }}
  {{- else }}
  configMap:
    name: {{ $files.configMap }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Probes of the HTTP port: none of them depends on Kafka, PostgreSQL or Redis. */}}
{{- define "bulkgrpc.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{/* Where pods of a component run: spread over zones and nodes, if that is possible. Context: root, component. */}}
{{- define "bulkgrpc.placement" -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "bulkgrpc.selector" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "bulkgrpc.podMeta" -}}
labels:
  {{- include "bulkgrpc.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
