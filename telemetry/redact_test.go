package telemetry

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

const (
	jwt     = "eyJhbGciOiJFZERTQSIsImtpZCI6IjEifQ.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLWJ5dGVz"
	stored  = "kizen_0123456789abcdefghijABCDEFGHIJklmnopqrstuvwxyz012"
	jwkD    = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
	webhook = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	plain   = "hunter2hunter2" // has no shape of its own
)

type stringer struct{ inner string }

func (s stringer) String() string { return s.inner }

type valuer struct{ inner string }

func (v valuer) LogValue() slog.Value { return slog.GroupValue(slog.String("inner", v.inner)) }

type hidden struct{ value string }

func (hidden) String() string { return redacted.Mark }

type nested struct {
	Name   string
	Inner  *nested
	Bytes  []byte
	secret hidden
	Any    any
}

// encoded returns a JWK as in an environment variable, in the given encoding.
func encoded(encoding *base64.Encoding, layout string) string {
	return encoding.EncodeToString(fmt.Appendf(nil, layout, jwkD))
}

// baseOf returns the base64 characters that text has at every alignment.
func baseOf(text string) string {
	return base64.StdEncoding.EncodeToString([]byte(text[3 : len(text)/3*3]))
}

func TestCredentialsOfEveryShapeAreRedactedFromTheLog(t *testing.T) {
	pem := "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw" + jwkD + "\n-----END PRIVATE KEY-----"
	message := func(text string) func(*slog.Logger) { return func(l *slog.Logger) { l.Info(text) } }
	value := func(v any) func(*slog.Logger) { return func(l *slog.Logger) { l.Info("x", "value", v) } }
	byName := func(name string, v any) func(*slog.Logger) { return func(l *slog.Logger) { l.Info("x", name, v) } }
	cases := map[string]func(*slog.Logger){
		// Places.
		"token in the message":        message("minted " + jwt),
		"token in an attribute":       value(jwt),
		"token as an attribute's key": byName(jwt, 1),
		"token without a key":         func(l *slog.Logger) { l.Info("x", []any{jwt}...) },
		"token in an error":           value(errors.New("sent " + jwt)),
		"token in a wrapped error":    value(fmt.Errorf("call: %w", errors.Join(errors.New("a"), errors.New(jwt)))),
		"token in a stringer":         value(stringer{jwt}),
		"token in a log valuer":       value(valuer{jwt}),
		"token in a nested valuer":    value([]any{valuer{jwt}}),
		"token in a structure":        value(struct{ Inner string }{jwt}),
		"token in a hidden field":     value(struct{ inner string }{jwt}),
		"token behind pointers":       value(&nested{Inner: &nested{Inner: &nested{Name: jwt}}}),
		"token in bytes":              value([]byte(jwt)),
		"token in an array of bytes":  value([5]byte([]byte(plain[:5]))),
		"token in nested bytes":       value(nested{Bytes: []byte(jwt)}),
		"token in hidden bytes":       value(struct{ b []byte }{[]byte(jwt)}),
		"token in raw JSON":           value(json.RawMessage(`{"a":"` + jwt + `"}`)),
		"token in a list":             value([]string{jwt}),
		"token in a map":              value(map[string]any{"b": []any{jwt}}),
		"token as a map's key":        value(map[string]int{jwt: 1}),
		"token in a group":            func(l *slog.Logger) { l.Info("x", slog.Group("g", slog.String("v", jwt))) },
		"token bound to a logger":     func(l *slog.Logger) { l.With("value", jwt).Info("x") },
		"token under a group":         func(l *slog.Logger) { l.WithGroup("g").Info("x", "value", jwt) },
		"token bound under a group":   func(l *slog.Logger) { l.WithGroup("g").With("value", jwt).Info("x") },

		// Shapes.
		"token cut short":                message("got " + jwt[:40]),
		"stored key":                     message("key " + stored),
		"stored key inside a word":       message("id_" + stored),
		"webhook secret":                 message("hook " + webhook),
		"private key of a JWK":           message(`{"kty":"OKP","d":"` + jwkD + `"}`),
		"symmetric key of a JWK":         message(`{"kty":"oct", "k" : "` + jwkD + `"}`),
		"prime of a JWK":                 message(`{"kty":"RSA","dp":"` + jwkD + `"}`),
		"JWK escaped in JSON":            message(`{"body":"{\"kty\":\"OKP\",\"d\":\"` + jwkD + `\"}"}`),
		"JWK as Python prints it":        message(`{'kty': 'OKP', 'd': '` + jwkD + `'}`),
		"JWK in base64":                  message("KIZEN_KEYS=" + encoded(base64.StdEncoding, `{"kty":"OKP","d":"%s"}`)),
		"JWK in base64, with a newline":  message("KIZEN_KEYS=" + encoded(base64.RawURLEncoding, "{\n  \"d\":\"%s\"}")),
		"private key as PEM":             message(pem),
		"private key as PEM in an error": value(errors.New(pem)),
		"private key with PEM headers":   message("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,1\n\n" + jwkD + "\n-----END RSA PRIVATE KEY-----"),
		"private key with dashes": message("-----BEGIN PRIVATE KEY-----\n" + jwkD + "-x-" + jwkD +
			"\n-----END PRIVATE KEY-----"),
		"private key as PEM, cut": message("-----BEGIN EC PRIVATE KEY-----\nabc-" + jwkD),
		"PGP private key": message("-----BEGIN PGP PRIVATE KEY BLOCK-----\n" + jwkD +
			"\n-----END PGP PRIVATE KEY BLOCK-----"),
		"private key on one line": message(strings.ReplaceAll(pem, "\n", `\n`)),
		"PEM in base64":           message(base64.StdEncoding.EncodeToString([]byte(pem))),
		"DER in base64":           message("MC4CAQAwBQYDK2VwBCIEI" + jwkD),

		"stored key in base64":         message("sent " + base64.StdEncoding.EncodeToString([]byte(stored))),
		"stored key in base64, second": message("sent " + base64.StdEncoding.EncodeToString([]byte("a"+stored))),
		"stored key in base64, third":  message("sent " + base64.RawURLEncoding.EncodeToString([]byte("ab"+stored))),
		"stored key in hexadecimal":    message(fmt.Sprintf("sent %X", stored)),
		"token in base64":              message("sent " + base64.StdEncoding.EncodeToString([]byte(jwt))),
		"bearer header in base64":      message("sent " + base64.StdEncoding.EncodeToString([]byte("Bearer "+plain+plain))),
		"token, its dots encoded":      message("GET /x?t=" + strings.ReplaceAll(jwt, ".", "%2E")),

		// Headers.
		"bearer header":            message("Authorization: Bearer " + plain),
		"basic header":             message("authorization: basic " + plain),
		"header without a scheme":  message("Authorization: " + plain),
		"header of another scheme": message(`Proxy-Authorization: Digest username="a", response="` + plain + `"`),
		"cookie header":            message("Cookie: a=b; session=" + plain),
		"header map":               value(http.Header{"Authorization": {"Token " + plain}, "Accept": {"*/*"}}),
		"header map, cookies":      value(http.Header{"Set-Cookie": {"session=" + plain}}),
		"header map, API key":      value(map[string]string{"X-API-KEY": plain}),
		"header map, printed": message(fmt.Sprint(http.Header{"X-Api-Key": {plain},
			"Authorization": {"ApiKey " + plain}})),
		"headers in JSON": message(`{"headers":{"authorization":"ApiKey ` + plain + `","x-api-key":"` + plain +
			`"}}`),
		"headers in escaped JSON":   message(`"{\"x-api-key\":\"` + plain + `\"}"`),
		"header by its name":        byName("X-API-KEY", plain),
		"header by its name, bytes": byName("Authorization", []byte(plain)),

		// URLs.
		"redis password":               message("dial redis://app:" + plain + "@127.0.0.1:6379/0"),
		"redis password, no user":      message("dial rediss://:" + plain + "@127.0.0.1:6379"),
		"redis password, digits first": message("dial redis://:12345" + plain + "@127.0.0.1:6379"),
		"redis password with / and @":  message("dial redis://:x/" + plain + "@" + plain + "@127.0.0.1:6379"),
		"redis password, sentinels":    message("dial redis+sentinel://app:" + plain + "@h1:26379,h2:26379/main"),
		"redis password, upper case":   message("dial REDIS://app:" + plain + "@h1"),
		"redis passwords of two":       message("redis://a:" + plain + "@h1,redis://b:" + plain + "@h2"),
		"redis token for a user":       message("dial redis://" + plain + plain + "@h1"),
		"sentinel password": message("redis+sentinel://h1:26379,h2:26379/main?sentinel_password=" + plain +
			"&db=1"),
		"sentinel password with a comma": message("redis://h1?sentinel_password=ab," + plain),
		"URL value":                      value(url.URL{Scheme: "redis", User: url.UserPassword("app", plain), Host: "h1"}),
		"URL pointer":                    value(&url.URL{Scheme: "redis", User: url.UserPassword("app", plain), Host: "h1"}),
		"query parameter":                message("GET /x?api_key=" + plain + "&a=b"),
		"query parameter, token":         message("GET /x?a=b&access_token=" + plain),
		"query parameter within another": message("GET /x?next=" + url.QueryEscape("/y?api_key="+plain+"/"+plain)),
		"header within a parameter":      message("GET /x?h=" + url.QueryEscape("X-API-KEY: "+plain)),
		"JSON within a parameter":        message("GET /x?b=" + url.QueryEscape(`{"password":"`+plain+` `+plain+`"}`)),
		"signature of S3":                message("GET https://h/x?X-Amz-Signature=" + plain),
		"signature of Azure":             message("GET https://h/x?se=1&sig=" + plain + "%3D"),
		"error of a client": value(&url.Error{Op: "Get", URL: "https://u:" + plain + "@h/x",
			Err: errors.New("refused")}),

		// Names.
		"attribute by its name":      byName("client_secret", plain),
		"attribute with dashes":      byName("Private-Key", plain),
		"attribute with a space":     byName("API Key", plain),
		"attribute in short":         byName("db_pwd", plain),
		"attribute of a group":       func(l *slog.Logger) { l.Info("x", slog.Group("credentials", "value", plain)) },
		"attribute under a group":    func(l *slog.Logger) { l.WithGroup("secrets").WithGroup("g").Info("x", "a", plain) },
		"attribute bound there":      func(l *slog.Logger) { l.WithGroup("secrets").With("a", plain).Info("x") },
		"structure's field":          value(struct{ Password string }{plain + " " + plain}),
		"structure's hidden field":   value(struct{ apiToken []byte }{[]byte(plain)}),
		"field that hides itself":    value(nested{secret: hidden{plain}}),
		"map's entry":                value(map[string]any{"db": map[string]any{"password": plain}}),
		"structure, printed":         message(fmt.Sprintf("%+v", struct{ Token string }{plain})),
		"variable":                   message("REDIS_PASSWORD=" + plain),
		"variable in quotes":         message(`export ACME_SECRET="` + plain + ` ` + plain + `"`),
		"password in prose":          message("password: " + plain),
		"connection string":          message("host=h user=u password=" + plain + " sslmode=off"),
		"connection string of ODBC":  message("Driver=x;Uid=u;Pwd=" + plain + ";"),
		"client secret in YAML":      message("client_secret: " + plain),
		"access token in YAML":       message("access_token: " + plain),
		"name in brackets, in JSON":  message(`{"user[password]": "` + plain + `"}`),
		"name with a slash, in JSON": message(`{"acme.example/token": "` + plain + `"}`),
		"name before a number":       message("{Token:1" + plain + "}"),
		"attribute from a log line":  byName("client_token", stringer{plain}),
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
				for _, secret := range []string{jwt, strings.Split(jwt, ".")[1], stored, stored[10:], webhook[6:], jwkD, plain,
					baseOf(stored), baseOf(jwt), baseOf(plain), fmt.Sprintf("%X", stored[10:])} {
					if strings.Contains(out.String(), secret) {
						t.Errorf("the log shows %q: %s", secret, out.String())
					}
				}
				if strings.Contains(out.String(), strings.Trim(fmt.Sprint([]byte(plain[:4])), "[]")) {
					t.Errorf("the log shows the bytes of a secret: %s", out.String())
				}
				if !strings.Contains(out.String(), redacted.Mark) && !strings.Contains(name, "array") {
					t.Errorf("no mark replaces the secret: %s", out.String())
				}
			})
		}
	}
}

func TestOrdinaryTextIsLoggedAsItIs(t *testing.T) {
	for _, text := range []string{
		"execution 7d444840-9dc0-11d1-b245-5ffdce74fad2 finished",
		"GET http://127.0.0.1:8080/custom-objects?page=2",
		"GET http://127.0.0.1:8080/people?email=a@b.example",
		"GET http://[::1]:8080/people?email=a@b.example",
		"GET https://app.go.kizen.com/api/people?email=somebody-with-a-long-name@b.example",
		"redis at 127.0.0.1:6379 refused the connection",
		"the token expires in 30s",
		"parse token: signature is invalid",
		"secrets=[ACME_KEY OTHER_KEY]",
		`{"secrets": ["ACME_KEY"], "max_tokens": 5}`,
		"cookies are dropped",
		"traceparent 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"GET /x?design=1&signature=none", "a key: value pair", "https://h/x?next=%2Fy%3Fpage%3D2",
		`open "/x/token": no such file`, "open /etc/passwd: permission denied",
		"read /run/secrets/api-key: no such file or directory",
		`open "token": no such file`, `open "my.token": permission denied`,
		`{"error":"open 'api_key': no such file or directory"}`,
		`--keys "/home/u/auth_token": is a directory`, "/src/token:12: syntax error", "token_file=/run/token", "max_tokens=5",
		"task-runner-launcher stopped", "-----BEGIN PUBLIC KEY-----",
	} {
		if got := Redact(text); got != text {
			t.Errorf("Redact(%q) = %q", text, got)
		}
	}
}

func TestOrdinaryValuesAreLoggedReadably(t *testing.T) {
	logger, written := jsonLog(t)
	circle := &nested{Name: "c"}
	circle.Inner = circle
	var nothing *url.URL
	logger.Info("x",
		"error", errors.New("boom"), "map", map[string]int{"a": 1}, "list", []string{"a", "b"}, "bytes", []byte("text"),
		"structure", struct {
			A int
			B *int
		}{A: 1}, "token_file", "/run/token", "keysFile", []string{"/run/keys"}, "secret_path", "a/b", "none", nil,
		"typed none", nothing, "circle", circle, "number", 5)
	record := written()[0]
	for key, want := range map[string]any{
		"error": "boom", "map": "map[a:1]", "list": "[a b]", "bytes": "text", "structure": "{A:1 B:<nil>}", "none": "<nil>",
		"token_file": "/run/token", "keysFile": "[/run/keys]", "secret_path": "a/b",
		"typed none": "<nil>", "number": 5.0,
	} {
		if record[key] != want {
			t.Errorf("%s = %v, want %v", key, record[key], want)
		}
	}
	if circle, _ := record["circle"].(string); !strings.Contains(circle, "...") {
		t.Errorf("circle = %q", circle)
	}
}

func FuzzRedactLetsNoKeyThrough(f *testing.F) {
	f.Add("sent ", " twice")
	f.Add(`{"a":"`, `"}`)
	f.Add("redis://x:", "@h")
	f.Fuzz(func(t *testing.T, before, after string) {
		for _, secret := range []string{stored, webhook} {
			if got := Redact(before + secret + after); strings.Contains(got, secret) {
				t.Errorf("Redact(%q) = %q", before+secret+after, got)
			}
		}
	})
}
