package minter

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

// Token is a credential in its wire form. Printing, logging and marshalling show "[REDACTED]"; only [Token.Reveal]
// returns the value. The zero Token is empty.
// a pointer, because fmt prints unexported fields of other structs without calling their methods
type Token struct{ value *string }

// NewToken wraps a credential, so that it cannot be printed by accident.
func NewToken(value string) Token { return Token{&value} }

// Reveal returns the credential itself. Pass it only to the request that needs it.
func (t Token) Reveal() string {
	if t.value == nil {
		return ""
	}
	return *t.value
}

// String implements fmt.Stringer.
func (Token) String() string { return redacted.Mark }

// GoString implements fmt.GoStringer.
func (Token) GoString() string { return redacted.Mark }

// Format implements fmt.Formatter: no verb and no flag reveals the value.
func (Token) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, redacted.Mark) }

// MarshalText implements encoding.TextMarshaler.
func (Token) MarshalText() ([]byte, error) { return []byte(redacted.Mark), nil }

// MarshalJSON implements json.Marshaler.
func (Token) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted.Mark + `"`), nil }

// LogValue implements slog.LogValuer.
func (Token) LogValue() slog.Value { return slog.StringValue(redacted.Mark) }
