package runner

import (
	"encoding/json"
	"net/url"
	"sort"
	"strconv"
	"strings"
)

// redactor takes what must not be seen out of text: the execution's secrets in the spellings they travel in, and the
// address of its local proxy.
type redactor struct {
	replacer *strings.Replacer
}

func newRedactor(secrets map[string]Secret, apiURL, apiRoot string) redactor {
	replacements := map[string]string{}
	for _, secret := range secrets {
		for _, spelling := range spellings(secret.Reveal()) {
			replacements[spelling] = Redacted
		}
	}
	for from, to := range proxyAddress(apiURL, apiRoot) {
		replacements[from] = to
	}
	// At one place the first pair that fits wins, so the longest stands first: a secret that starts with another one
	// is replaced whole.
	targets := sortedKeys(replacements)
	sort.SliceStable(targets, func(i, j int) bool { return len(targets[i]) > len(targets[j]) })
	var pairs []string
	for _, target := range targets {
		if target != "" {
			pairs = append(pairs, target, replacements[target])
		}
	}
	return redactor{replacer: strings.NewReplacer(pairs...)}
}

// spellings returns value as it appears plain, in JSON, in Python's repr and percent-encoded.
func spellings(value string) []string {
	ascii := strconv.QuoteToASCII(value)
	all := []string{value, ascii[1 : len(ascii)-1], url.QueryEscape(value), url.PathEscape(value)}
	if quoted, err := marshal(value); err == nil {
		all = append(all, string(quoted[1:len(quoted)-1]))
	}
	return append(all, strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(value))
}

// proxyAddress maps the parts of the local proxy's base that tell where it is to what stands there instead.
func proxyAddress(apiURL, apiRoot string) map[string]string {
	local, err := url.Parse(apiURL)
	if err != nil || local.Host == "" {
		return nil
	}
	root, err := url.Parse(apiRoot)
	if err != nil {
		return nil
	}
	parts := map[string]string{strings.TrimSuffix(apiURL, "/"): strings.TrimSuffix(apiRoot, "/"), local.Host: root.Host}
	for _, segment := range strings.Split(local.Path, "/") {
		if len(segment) >= 16 {
			parts[segment] = Redacted
		}
	}
	return parts
}

func (r redactor) text(s string) string { return r.replacer.Replace(s) }

// value redacts the text of v. Numbers, booleans, dates and identifiers stay as they are: they are not text, and a
// secret "2" must not break them.
func (r redactor) value(v Value) Value {
	element := v.Type
	for {
		inner, isArray := element.Element()
		if !isArray {
			break
		}
		element = inner
	}
	switch {
	case element == typeString, element == typeEmail, element == typePhone, element == typeFile, element == typeList,
		element.isOption():
		return Value{Type: v.Type, V: r.any(v.V)}
	}
	return v
}

// shown is a value for people alone: a secret is hidden in it whatever its type, because nothing reads it back.
func (r redactor) shown(v Value) Value {
	list, ok := v.V.([]Value)
	if !ok {
		return Value{Type: v.Type, V: r.any(v.V)}
	}
	redacted := make([]Value, len(list))
	for i, item := range list {
		redacted[i] = r.shown(item)
	}
	return Value{Type: v.Type, V: redacted}
}

func (r redactor) any(v any) any {
	switch v := v.(type) {
	case string:
		return r.text(v)
	case Value:
		return r.value(v)
	case []Value:
		redacted := make([]Value, len(v))
		for i, item := range v {
			redacted[i] = r.value(item)
		}
		return redacted
	case []any:
		redacted := make([]any, len(v))
		for i, item := range v {
			redacted[i] = r.any(item)
		}
		return redacted
	case map[string]any:
		redacted := make(map[string]any, len(v))
		for key, item := range v {
			redacted[key] = r.any(item)
		}
		return redacted
	case json.Number:
		return v
	}
	return v
}

func (r redactor) pointer(s *string) *string {
	if s == nil {
		return nil
	}
	redacted := r.text(*s)
	return &redacted
}

func (r redactor) headers(headers map[string]string) map[string]string {
	for name, value := range headers {
		if redacted := r.text(value); redacted != value {
			headers[name] = redacted
		}
	}
	return headers
}
