package webhook

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/kizen/kizen-sidecar/internal/redacted"
	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

var (
	firstSecret  = "whsec_" + base64.StdEncoding.EncodeToString([]byte("first-secret-of-32-bytes-0123456"))
	secondSecret = "whsec_" + base64.StdEncoding.EncodeToString([]byte("second-secret-of-32-bytes-012345"))
)

func newSender(t *testing.T, allowed ...string) *Sender {
	t.Helper()
	secrets, err := ParseSecrets([]byte("# current\n" + firstSecret + "\n\n" + secondSecret + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	config := Config{Secrets: secrets}
	for _, network := range allowed {
		config.Allowed = append(config.Allowed, netip.MustParsePrefix(network))
	}
	sender, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sender.Close)
	return sender
}

func finished(t *testing.T, url string) Message {
	t.Helper()
	m, err := Finished{ExecutionID: "e.1", BusinessID: "b1", Outcome: "ok",
		Result: []byte(`{"values": null}`)}.Message(url, time.Unix(1_800_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAMessageIsSignedByEverySecretAndKeepsItsID(t *testing.T) {
	var ids []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for _, secret := range []string{firstSecret, secondSecret} {
			verifier, err := standardwebhooks.NewWebhook(secret)
			if err != nil {
				t.Error(err)
				continue
			}
			if err := verifier.Verify(body, r.Header); err != nil {
				t.Errorf("the signature of one secret: %v", err)
			}
			if verifier.Verify(append(body, ' '), r.Header) == nil {
				t.Error("a changed body is accepted")
			}
		}
		var document struct {
			Type string
			Data Finished
		}
		if err := json.Unmarshal(body, &document); err != nil || document.Type != finishedType ||
			document.Data.ExecutionID != "e.1" {
			t.Errorf("body = %s, %v", body, err)
		}
		ids = append(ids, r.Header.Get("webhook-id"))
	}))
	defer server.Close()
	sender := newSender(t, "127.0.0.0/8")
	for range 2 {
		if err := sender.Try(t.Context(), finished(t, server.URL)); err != nil {
			t.Fatal(err)
		}
	}
	if len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("ids = %q, want the same one twice", ids)
	}
}

func TestEachExecutionHasItsOwnMessageID(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range []Finished{{ExecutionID: "1", BusinessID: "a"}, {ExecutionID: "2", BusinessID: "a"},
		{ExecutionID: "1", BusinessID: "b"}} {
		m, err := f.Message("https://example.com", time.Now())
		if err != nil || seen[m.ID] || strings.Contains(m.ID, ".") {
			t.Errorf("%+v: id %q, %v", f, m.ID, err)
		}
		seen[m.ID] = true
	}
}

func TestResponsesAcceptRetryOrEndADelivery(t *testing.T) {
	for _, test := range []struct {
		status     int
		retryAfter string
		taken      bool
		final      bool
		wait       time.Duration
	}{
		{status: 200, taken: true},
		{status: 204, taken: true},
		{status: 302},
		{status: 400},
		{status: 404},
		{status: 410, final: true},
		{status: 429, retryAfter: "120", wait: 2 * time.Minute},
		{status: 503, retryAfter: "86400", wait: time.Hour},
		{status: 503, retryAfter: "-5"},
		{status: 503, retryAfter: "soon"},
	} {
		t.Run(fmt.Sprint(test.status, test.retryAfter), func(t *testing.T) {
			var asked atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				w.Header().Set("Retry-After", test.retryAfter)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, "a private response body")
			}))
			defer server.Close()
			err := newSender(t, "127.0.0.0/8").Try(t.Context(), finished(t, server.URL+"/hook?token=very-secret"))
			if (err == nil) != test.taken || Final(err) != test.final {
				t.Errorf("error %v, final %v", err, Final(err))
			}
			var failed *DeliveryError
			if errors.As(err, &failed) && failed.RetryAfter != test.wait {
				t.Errorf("retry after %s, want %s", failed.RetryAfter, test.wait)
			}
			if err != nil && (strings.Contains(err.Error(), "very-secret") ||
				strings.Contains(err.Error(), "private response body")) {
				t.Errorf("the error reveals too much: %v", err)
			}
			if asked.Load() != 1 {
				t.Errorf("%d requests: a redirect was followed", asked.Load())
			}
		})
	}
}

func TestInternalAddressesReceiveNothing(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	connected := make(chan struct{}, 64)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			connected <- struct{}{}
			_ = conn.Close()
		}
	}()
	port := listener.Addr().(*net.TCPAddr).Port
	sender := newSender(t)
	for _, host := range attacks.Addresses() {
		for _, scheme := range []string{"http", "https"} {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			err := sender.Try(ctx, finished(t, fmt.Sprintf("%s://%s:%d/", scheme, host, port)))
			cancel()
			// The resolver does not accept these as addresses at all, and they receive nothing either.
			var unknown *net.DNSError
			if !errors.Is(err, errAddress) && !errors.As(err, &unknown) {
				t.Errorf("%s://%s: %v, want a refusal", scheme, host, err)
			}
			if errors.Is(err, errAddress) && !Final(err) {
				t.Errorf("%s://%s would be retried", scheme, host)
			}
		}
	}
	select {
	case <-connected:
		t.Error("a connection reached an internal listener")
	default:
	}
}

func TestPublicAddressesReceiveMessagesOverTLSOnly(t *testing.T) {
	for _, test := range []struct {
		address string
		allowed []string
		secure  bool
		want    error
	}{
		{"93.184.215.14:443", nil, true, nil},
		{"[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:443", nil, true, nil},
		{"93.184.215.14:80", nil, false, errPlain},
		{"10.1.2.3:80", []string{"10.1.0.0/16"}, false, nil},
		{"[::ffff:10.1.2.3]:80", []string{"10.1.0.0/16"}, false, nil},
		{"10.2.2.3:443", []string{"10.1.0.0/16"}, true, errAddress},
		{"[fe80::1%eth0]:443", nil, true, errAddress},
		{"not-an-address:443", nil, true, errAddress},
	} {
		var g guard
		for _, network := range test.allowed {
			g.allowed = append(g.allowed, netip.MustParsePrefix(network))
		}
		if err := g.control(test.secure)("tcp", test.address, nil); !errors.Is(err, test.want) {
			t.Errorf("%s, secure %v, allowed %v: %v, want %v", test.address, test.secure, test.allowed, err, test.want)
		}
	}
}

func TestAServerWithAnUntrustedCertificateReceivesNothing(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter,
		*http.Request) {
		t.Error("the server received the message")
	}))
	server.Config.ErrorLog = nil
	server.StartTLS()
	defer server.Close()
	if err := newSender(t, "127.0.0.0/8").Try(t.Context(), finished(t, server.URL)); err == nil {
		t.Error("the certificate was not checked")
	}
}

func TestMessagesThatCannotBeSentAreFinal(t *testing.T) {
	sender := newSender(t, "127.0.0.0/8")
	for name, m := range map[string]Message{
		"no url":           {ID: "msg_1"},
		"another scheme":   {ID: "msg_1", URL: "file:///etc/passwd"},
		"a user":           {ID: "msg_1", URL: "https://user:pass@example.com"},
		"no id":            {URL: "http://127.0.0.1:1"},
		"an id with a dot": {ID: "msg.1", URL: "http://127.0.0.1:1"},
		"a huge body":      {ID: "msg_1", URL: "http://127.0.0.1:1", Body: make([]byte, MaxBody+1)},
	} {
		if err := sender.Try(t.Context(), m); !Final(err) || strings.Contains(err.Error(), "pass@") {
			t.Errorf("%s: %v, want a final error", name, err)
		}
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	secret, err := ParseSecret(firstSecret)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(struct{ S Secret }{secret})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(secret),
		fmt.Sprintf("%v %+v %#v %s %x", secret, secret, secret, secret, secret), string(encoded),
		secret.LogValue().String()} {
		if strings.Contains(text, "first-secret") || strings.Contains(text, "66697273") ||
			!strings.Contains(text, redacted.Mark) {
			t.Errorf("rendering %q", text)
		}
	}
}

func TestAnInvalidSecretIsRefusedAndNotQuoted(t *testing.T) {
	for _, text := range []string{"", "whsec_", "whsec_short", "whsec_!!!", strings.TrimPrefix(firstSecret, "whsec_"),
		"whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 23)),
		"whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65))} {
		_, err := ParseSecrets([]byte("\n" + text + "\n"))
		if err == nil || len(text) > 6 && strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("New accepted a configuration without a secret")
	}
	if _, err := New(Config{Secrets: []Secret{{}}}); err == nil {
		t.Error("New accepted an empty secret")
	}
}
