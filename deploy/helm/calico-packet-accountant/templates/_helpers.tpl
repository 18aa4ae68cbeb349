{{- define "accountant.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "accountant.selector" -}}
app.kubernetes.io/name: calico-packet-accountant
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "accountant.labels" -}}
{{ include "accountant.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "accountant.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "accountant.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "accountant.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The address to serve on, as host:port. */ -}}
{{- define "accountant.listen" -}}
{{- $host := default "::" .Values.listenAddress -}}
{{- if contains ":" $host -}}[{{ $host }}]{{- else -}}{{ $host }}{{- end -}}:{{ .Values.port }}
{{- end -}}

{{- /* How probes ask: at the node's address, unless the agent listens on one only; with a web configuration, which may want a
certificate or a password of them, only whether somebody listens. */ -}}
{{- define "accountant.probe" -}}
{{- $values := (index . 0).Values -}}
{{- if $values.web.configSecret -}}
tcpSocket:
{{- else -}}
httpGet:
{{- end }}
  port: {{ $values.port }}
  {{- with $values.listenAddress }}
  host: {{ . | quote }}
  {{- end }}
  {{- if not $values.web.configSecret }}
  path: {{ index . 1 }}
  {{- end }}
{{- end -}}
