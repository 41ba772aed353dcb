package telemetry

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

const (
	jwt    = "eyJhbGciOiJFZERTQSIsImtpZCI6IjEifQ.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLWJ5dGVz"
	stored = "kzn_live_0123456789abcdefghijABCDEFGHIJ"
	jwkD   = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
)

type stringer struct{ inner string }

func (s stringer) String() string { return s.inner }

func TestCredentialsOfEveryShapeAreRedactedFromTheLog(t *testing.T) {
	cases := map[string]func(*slog.Logger){
		"token in the message":    func(l *slog.Logger) { l.Info("minted " + jwt) },
		"token in an attribute":   func(l *slog.Logger) { l.Info("x", "value", jwt) },
		"token in an error":       func(l *slog.Logger) { l.Info("x", "error", errors.New("sent "+jwt)) },
		"token in a stringer":     func(l *slog.Logger) { l.Info("x", "value", stringer{jwt}) },
		"token in a structure":    func(l *slog.Logger) { l.Info("x", "value", struct{ Inner string }{jwt}) },
		"token in bytes":          func(l *slog.Logger) { l.Info("x", "value", map[string]any{"b": []string{jwt}}) },
		"token in a group":        func(l *slog.Logger) { l.Info("x", slog.Group("g", slog.String("v", jwt))) },
		"token bound to a logger": func(l *slog.Logger) { l.With("value", jwt).Info("x") },
		"token under a group":     func(l *slog.Logger) { l.WithGroup("g").Info("x", "value", jwt) },
		"stored key":              func(l *slog.Logger) { l.Info("key " + stored) },
		"private key of a JWK":    func(l *slog.Logger) { l.Info(`{"kty":"OKP","d":"` + jwkD + `"}`) },
		"private key as PEM": func(l *slog.Logger) {
			l.Info("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw" + jwkD + "\n-----END PRIVATE KEY-----")
		},
		"bearer header":           func(l *slog.Logger) { l.Info("Authorization: Bearer hunter2hunter2") },
		"redis password":          func(l *slog.Logger) { l.Info("dial redis://app:hunter2hunter2@127.0.0.1:6379/0") },
		"redis password, no user": func(l *slog.Logger) { l.Info("dial rediss://:hunter2hunter2@127.0.0.1:6379") },
		"query parameter":         func(l *slog.Logger) { l.Info("GET /x?api_key=hunter2hunter2&a=b") },
		"attribute by its name":   func(l *slog.Logger) { l.Info("x", "client_secret", "hunter2hunter2") },
		"header by its name":      func(l *slog.Logger) { l.Info("x", "X-API-KEY", "hunter2hunter2") },
	}
	for name, write := range cases {
		for _, format := range []string{"json", "text"} {
			t.Run(name+" as "+format, func(t *testing.T) {
				var out bytes.Buffer
				logger, err := NewLogger(&out, LogConfig{Format: format})
				if err != nil {
					t.Fatal(err)
				}
				write(logger)
				for _, secret := range []string{jwt, strings.Split(jwt, ".")[1], stored, jwkD, "hunter2hunter2"} {
					if strings.Contains(out.String(), secret) {
						t.Errorf("the log shows %q: %s", secret, out.String())
					}
				}
				if !strings.Contains(out.String(), Redacted) {
					t.Errorf("nothing marks what was removed: %s", out.String())
				}
			})
		}
	}
}

func TestOrdinaryTextIsLoggedAsItIs(t *testing.T) {
	for _, text := range []string{
		"execution 7d444840-9dc0-11d1-b245-5ffdce74fad2 finished",
		"GET http://127.0.0.1:8080/custom-objects?page=2",
		"redis at 127.0.0.1:6379 refused the connection",
		"the token expires in 30s",
	} {
		if got := Redact(text); got != text {
			t.Errorf("Redact(%q) = %q", text, got)
		}
	}
}

func TestLogSettingsThatDoNotExistAreRefusedByName(t *testing.T) {
	for _, config := range []LogConfig{{Level: "loud"}, {Format: "xml"}} {
		_, err := NewLogger(&bytes.Buffer{}, config)
		if err == nil || !strings.Contains(err.Error(), config.Level+config.Format) {
			t.Errorf("NewLogger(%+v) error = %v", config, err)
		}
	}
}

func TestLogLevelHoldsBackWhatIsBelowIt(t *testing.T) {
	var out bytes.Buffer
	logger, err := NewLogger(&out, LogConfig{Level: "warn"})
	if err != nil {
		t.Fatal(err)
	}
	logger.Info("quiet")
	logger.Warn("heard")
	if strings.Contains(out.String(), "quiet") || !strings.Contains(out.String(), "heard") {
		t.Errorf("log = %s", out.String())
	}
}
