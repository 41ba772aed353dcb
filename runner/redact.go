package runner

import (
	"encoding/json"
	"net/url"
	"slices"
	"sort"
	"strings"

	"github.com/kizen/kizen-sidecar/internal/keyscan"
	"github.com/kizen/kizen-sidecar/internal/redacted"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// redactor removes from text the execution's secrets in every form, its keys, and the address of its local proxy.
type redactor struct {
	secrets *telemetry.Mask
	address *strings.Replacer
	keys    *keys
}

// keys finds the keys of an execution in text.
type keys struct {
	used     func() []string
	scanners map[string]*keyscan.Scanner
}

// each returns scanners for all keys that the execution has used so far.
func (k *keys) each() (scanners []*keyscan.Scanner) {
	if k.used == nil {
		return nil
	}
	for _, key := range k.used() {
		if _, known := k.scanners[key]; !known {
			k.scanners[key] = keyscan.New(key)
		}
		scanners = append(scanners, k.scanners[key])
	}
	return scanners
}

func newRedactor(e Execution) redactor {
	secrets, apiURL, apiRoot := e.Secrets, e.APIURL, e.APIRoot
	var values, pairs []string
	for _, secret := range secrets {
		values = append(values, secret.Reveal())
	}
	address := proxyAddress(apiURL, apiRoot)
	// The replacer uses the first matching pair, so the longest must come first.
	parts := sortedKeys(address)
	sort.SliceStable(parts, func(i, j int) bool { return len(parts[i]) > len(parts[j]) })
	for _, part := range parts {
		if part != "" {
			pairs = append(pairs, part, address[part])
		}
	}
	return redactor{
		secrets: telemetry.NewMask(values...), address: strings.NewReplacer(pairs...),
		keys: &keys{used: e.Keys, scanners: map[string]*keyscan.Scanner{}},
	}
}

// Shown returns the step's source and the JSON object of its inputs for display, without its secrets.
func (e Execution) Shown() (source string, inputs json.RawMessage) {
	redact := newRedactor(e)
	shown := make(Inputs, len(e.Inputs))
	for name, value := range e.Inputs {
		shown[name] = redact.shown(value)
	}
	inputs, _ = marshal(shown) // inputs that came as JSON can be written as JSON
	return redact.text(string(e.Script)), inputs
}

// proxyAddress maps the parts of the local proxy's base URL that reveal its address to their replacements.
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
			parts[segment] = redacted.Mark
			// in a redirect without a host
			parts[strings.TrimSuffix(local.EscapedPath(), "/")] = strings.TrimSuffix(root.EscapedPath(), "/")
		}
	}
	return parts
}

func (r redactor) text(s string) string {
	return r.withoutKeys(r.secrets.Text(r.address.Replace(s)))
}

// name returns the redacted name of a field, in the form that text has in JSON.
func (r redactor) name(s string) string {
	return r.withoutKeys(r.secrets.Name(r.address.Replace(s)))
}

func (r redactor) withoutKeys(s string) string {
	for _, scanner := range r.keys.each() {
		if data := []byte(s); scanner.Contains(data) {
			scanner.Mask(data)
			s = string(data)
		}
	}
	return s
}

// holdsKey reports whether a text contains a key of the execution in a usable form.
func (r redactor) holdsKey(text []byte) bool {
	return slices.ContainsFunc(r.keys.each(), func(s *keyscan.Scanner) bool { return s.Contains(text) })
}

// printed returns the redacted tail of a step's output. If the drain is full, the text may begin in the middle of a
// secret, so printed drops as many bytes as the longest secret has.
func (r redactor) printed(kept string) string {
	text, size := r.text(kept), maxTail
	if len(kept) == keptTail {
		size = min(size, max(0, len(text)-(keptTail-maxTail)))
	}
	return lastBytes(text, size)
}

// shown returns an input for display. It replaces secrets in values of every type, because no program reads them back.
func (r redactor) shown(v Value) Value {
	list, ok := v.V.([]Value)
	if !ok {
		return Value{Type: v.Type, V: r.any(v.V)}
	}
	items := make([]Value, len(list))
	for i, item := range list {
		items[i] = r.shown(item)
	}
	return Value{Type: v.Type, V: items}
}

func (r redactor) any(v any) any {
	switch v := v.(type) {
	case string:
		return r.text(v)
	case []any:
		shown := make([]any, len(v))
		for i, item := range v {
			shown[i] = r.any(item)
		}
		return shown
	case map[string]any:
		shown := make(map[string]any, len(v))
		for key, item := range v {
			shown[key] = r.any(item)
		}
		return shown
	}
	return v
}

func (r redactor) headers(headers map[string]string) map[string]string {
	if headers == nil {
		return nil
	}
	shown := make(map[string]string, len(headers))
	for name, value := range headers {
		shown[r.name(name)] = r.text(value)
	}
	return shown
}
