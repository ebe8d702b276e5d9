{{- define "forebay.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "forebay.selector" -}}
app.kubernetes.io/name: forebay
{{- end -}}

{{- define "forebay.labels" -}}
{{ include "forebay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- /* Seconds between SIGTERM and SIGKILL: the drain, then the agent's end. */ -}}
{{- define "forebay.grace" -}}
{{ add .Values.drainTimeoutSeconds 15 }}
{{- end -}}

{{- /* Flags of both containers, so that `kubectl exec` of any command in either finds the proxy and has its view. */ -}}
{{- define "forebay.environment" -}}
- name: FOREBAY_NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: FOREBAY_ADMIN
  value: {{ .Values.admin | quote }}
{{- with .Values.namespaces }}
- name: FOREBAY_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
{{- end -}}
