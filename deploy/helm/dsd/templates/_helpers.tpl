{{- /*
What ConfigMaps hold, and how they are named. The argument is a list: the root, the overlay, the ConfigMap's name, and a
prefix of it. The name ends in a hash of the content, as kustomize computes it, so a change replaces the pods.
*/ -}}

{{- define "dsd.config-data" -}}
{{- $root := index . 0 -}}
{{- $built := include (printf "%s.%s" (index . 1) (index . 2)) $root | fromYaml -}}
{{- mergeOverwrite $built (index $root.Values.config (index . 2) | default dict) | toYaml -}}
{{- end -}}

{{- define "dsd.config-name" -}}
{{- $content := dict "kind" "ConfigMap" "name" "" "data" (include "dsd.config-data" . | printf "%s\n" | fromYaml) -}}
{{- $hash := $content | toJson | sha256sum | trunc 10 | replace "0" "g" | replace "1" "h" | replace "3" "k" | replace "a" "m" | replace "e" "t" -}}
{{- printf "%s%s-%s" (index . 3) (index . 2) $hash -}}
{{- end -}}
