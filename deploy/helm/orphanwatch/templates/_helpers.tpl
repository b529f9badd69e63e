{{- define "orphanwatch.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "orphanwatch.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "orphanwatch.selectorLabels" -}}
app.kubernetes.io/name: {{ include "orphanwatch.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Of the pod of helm test, which the Service must not select. */}}
{{- define "orphanwatch.testLabels" -}}
app.kubernetes.io/name: {{ include "orphanwatch.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "orphanwatch.labels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "orphanwatch.selectorLabels" . }}
{{- end }}

{{- define "orphanwatch.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "orphanwatch.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "orphanwatch.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "orphanwatch.scheme" -}}
{{- if .Values.tls.existingSecret }}https{{ else }}http{{ end }}
{{- end }}

{{- define "orphanwatch.host" -}}
{{- printf "%s.%s.svc" (include "orphanwatch.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "orphanwatch.secretName" -}}
{{- default (include "orphanwatch.fullname" .) .Values.existingSecret }}
{{- end }}

{{/* What of the Secret is read, as {"databaseUrl": "database-url", …}. */}}
{{- define "orphanwatch.secretKeys" -}}
{{- $keys := dict }}
{{- range $what, $key := .Values.secretKeys }}
{{- if and $key (or $.Values.existingSecret (get $.Values.secret $what)) }}
{{- $_ := set $keys $what $key }}
{{- end }}
{{- end }}
{{- toJson $keys }}
{{- end }}

{{/* What the schema cannot say. */}}
{{- define "orphanwatch.check" -}}
{{- $v := .Values }}
{{- if and $v.existingSecret $v.secret.create }}
{{- fail "existingSecret and secret.create are both set: use one of them" }}
{{- end }}
{{- if not (or $v.existingSecret $v.secret.create) }}
{{- fail "no Secret: set existingSecret to the name of one that has the keys database-url and redis-url (secretKeys), or, for a trial, secret.create=true with secret.databaseUrl and secret.redisUrl" }}
{{- end }}
{{- if $v.secret.create }}
{{- range $what, $key := $v.secretKeys }}
{{- if and (not $key) (get $v.secret $what) }}
{{- fail (printf "secret.%s is set, but secretKeys.%s is empty: name the key to put it under, such as secretKeys.%s=%s" $what $what $what (kebabcase $what)) }}
{{- end }}
{{- end }}
{{- end }}
{{- $keys := include "orphanwatch.secretKeys" . | fromJson }}
{{- $at := ternary "secretKeys" "secret" (ne $v.existingSecret "") }}
{{- if not $keys.databaseUrl }}
{{- fail (printf "%s.databaseUrl is empty: the daemon needs the URL of PostgreSQL" $at) }}
{{- end }}
{{- if not (or $keys.redisUrl $keys.brokerUrl $keys.resultBackend) }}
{{- fail (printf "%s.redisUrl, brokerUrl and resultBackend are all empty: the daemon needs the URL of Redis" $at) }}
{{- end }}
{{- if and (or $v.config.http.jwt_issuer $v.config.http.jwt_audience) (not $keys.jwtSecret) }}
{{- fail (printf "config.http.jwt_issuer or jwt_audience is set, but %s.jwtSecret is empty, so that no JWT is accepted" $at) }}
{{- end }}
{{- end }}
