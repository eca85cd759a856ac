{{/* Labels of the operator's objects. */}}
{{- define "leat.labels" -}}
app.kubernetes.io/name: leat-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Labels that its pods are found by: they never change. */}}
{{- define "leat.selector" -}}
app.kubernetes.io/name: leat-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* An image: the whole one that was named, or that of the registry. Called with a list: context, name, whole image. */}}
{{- define "leat.image" -}}
{{- $context := index . 0 -}}
{{- $registry := trimSuffix "/" $context.Values.image.registry -}}
{{- $tag := default $context.Chart.AppVersion $context.Values.image.tag -}}
{{- default (printf "%s%s:%s" (empty $registry | ternary "" (printf "%s/" $registry)) (index . 1) $tag) (index . 2) -}}
{{- end }}
