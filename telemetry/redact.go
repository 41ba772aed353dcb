package telemetry

import (
	"context"
	"log/slog"
	"regexp"
	"strings"
)

// Redacted stands wherever a secret value stood.
const Redacted = "[REDACTED]"

// secretShapes match what a secret looks like when nothing else says that it
// is one. Each keeps what stands in its first group.
var secretShapes = []*regexp.Regexp{
	// A JSON Web Token (RFC 7519) or any other compact JWS: header and payload
	// both start with an encoded brace.
	regexp.MustCompile(`()eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?`),
	// The private parts of a JSON Web Key (RFC 7517, RFC 8037).
	regexp.MustCompile(`("(?:d|k)"\s*:\s*")[A-Za-z0-9_-]{16,}`),
	// A PEM block that holds a private key, whole or cut.
	regexp.MustCompile(`()-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?`),
	// Stored keys of integration accounts.
	regexp.MustCompile(`()\bkzn_[A-Za-z0-9_]{16,}`),
	// Authorization header values (RFC 9110, section 11.6.2).
	regexp.MustCompile(`(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}`),
	// The password of a URL's user information.
	regexp.MustCompile(`([a-z][a-z0-9+.-]*://[^\s/:@"]*:)[^\s/@"]+(?:@)`),
	// A header or parameter that is named for what it carries.
	regexp.MustCompile(`(?i)((?:x-api-key|api[_-]?key|access[_-]?token|password|secret)["']?\s*[=:]\s*["']?)[^\s"'&,;}]+`),
}

// secretNames are the parts of an attribute's name that make its value secret.
var secretNames = []string{"password", "secret", "token", "api_key", "apikey", "x-api-key", "authorization", "private_key", "cookie"}

// Redact replaces whatever in text has the shape of a credential.
func Redact(text string) string {
	for _, shape := range secretShapes {
		text = shape.ReplaceAllStringFunc(text, func(match string) string {
			kept := shape.FindStringSubmatch(match)[1]
			if strings.HasSuffix(match, "@") {
				return kept + Redacted + "@"
			}
			return kept + Redacted
		})
	}
	return text
}

// NamesSecret reports whether a header, parameter or attribute of this name
// carries a credential.
func NamesSecret(name string) bool {
	name = strings.ToLower(name)
	for _, part := range secretNames {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// redactingHandler redacts every record before the next handler sees it, so
// that a slip elsewhere does not become a leak.
type redactingHandler struct{ next slog.Handler }

func (h redactingHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h redactingHandler) Handle(ctx context.Context, record slog.Record) error {
	clean := slog.NewRecord(record.Time, record.Level, Redact(record.Message), record.PC)
	record.Attrs(func(attr slog.Attr) bool {
		clean.AddAttrs(redactAttr(attr))
		return true
	})
	return h.next.Handle(ctx, clean)
}

func (h redactingHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, attr := range attrs {
		clean[i] = redactAttr(attr)
	}
	return redactingHandler{h.next.WithAttrs(clean)}
}

func (h redactingHandler) WithGroup(name string) slog.Handler {
	return redactingHandler{h.next.WithGroup(name)}
}

func redactAttr(attr slog.Attr) slog.Attr {
	value := attr.Value.Resolve()
	switch value.Kind() {
	case slog.KindGroup:
		members := value.Group()
		clean := make([]slog.Attr, len(members))
		for i, member := range members {
			clean[i] = redactAttr(member)
		}
		return slog.Attr{Key: attr.Key, Value: slog.GroupValue(clean...)}
	case slog.KindBool, slog.KindDuration, slog.KindTime, slog.KindInt64, slog.KindUint64, slog.KindFloat64:
		return slog.Attr{Key: attr.Key, Value: value}
	}
	if NamesSecret(attr.Key) {
		return slog.String(attr.Key, Redacted)
	}
	// Errors, byte slices and structures are flattened to text here: what the
	// next handler would print of them cannot be inspected afterwards.
	return slog.String(attr.Key, Redact(value.String()))
}
