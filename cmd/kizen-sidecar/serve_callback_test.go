package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// nextWebhookSecret is the secret that receivers use after a rotation.
const nextWebhookSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

// delivery is one attempt to deliver a callback.
type delivery struct {
	header http.Header
	body   string
}

// signedBy verifies a delivery according to the specification of Standard Webhooks: HMAC-SHA256 of id, timestamp and
// body.
func (d delivery) signedBy(t *testing.T, secret string) bool {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	_, _ = io.WriteString(mac, d.header.Get("webhook-id")+"."+d.header.Get("webhook-timestamp")+"."+d.body) // a hash takes everything
	return slices.Contains(strings.Fields(d.header.Get("webhook-signature")),
		"v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// callback is the body of a delivery.
type callback struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      struct {
		ExecutionID string          `json:"execution_id"`
		BusinessID  string          `json:"business_id"`
		Outcome     string          `json:"outcome"`
		Result      json.RawMessage `json:"result"`
	} `json:"data"`
}

func (d delivery) message(t *testing.T) callback {
	t.Helper()
	var m callback
	if err := json.Unmarshal([]byte(d.body), &m); err != nil {
		t.Fatalf("%v: %s", err, d.body)
	}
	return m
}

// mailbox records deliveries, and answers the first one of each message with 500.
type mailbox struct {
	*httptest.Server
	mu   sync.Mutex
	kept map[string][]delivery // by webhook-id
}

func newMailbox(t *testing.T) *mailbox {
	m := &mailbox{kept: map[string][]delivery{}}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		id := r.Header.Get("webhook-id")
		m.kept[id] = append(m.kept[id], delivery{r.Header, string(body)})
		if len(m.kept[id]) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(m.Close)
	return m
}

// of returns the deliveries about an execution.
func (m *mailbox) of(t *testing.T, id string) []delivery {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, all := range m.kept {
		if all[0].message(t).Data.ExecutionID == id {
			return slices.Clone(all)
		}
	}
	return nil
}

// TestServeRetriesACallbackUntilItIsAccepted: an execution has one signed callback, which a receiver that first refuses
// gets again with the same body. The registry, the delivery and the end of the process meet.
func TestServeRetriesACallbackUntilItIsAccepted(t *testing.T) {
	api, box := newGateAPI(t), newMailbox(t)
	secrets := writeFile(t, t.TempDir(), "webhook.secret", webhookSecret+"\n"+nextWebhookSecret+"\n")
	s := startServe(t, "--warm", "0", "--api-root", api.root(), "--webhook-secret-file", secrets, "--webhook-allow",
		"127.0.0.0/8")
	began := time.Now().Add(-time.Second)
	submit := func(id string, body step) {
		t.Helper()
		body = body.with("execution_id", id).with("callback_url", box.URL+"/hook?token=hunter2hunter2")
		for range 2 { // the same execution twice: it has one callback
			if got := s.ask("POST", "/executions", body); got.status != 202 {
				t.Fatalf("%s: %d %s", id, got.status, got.body)
			}
		}
	}
	submit("ok", script("outputs.doubled = inputs.n * 2\nkizen.api.get('/x')").
		with("inputs", step{"n": step{"t": "n", "v": "21"}}).with("output_types", step{"doubled": "n"}))
	submit("fails", script("raise ValueError('no <luck>')"))
	submit("cancelled", gated(newMarker()))
	waitFor(t, func() bool { return api.waiting.Load() == 1 })
	s.ask("DELETE", "/executions/cancelled", nil)

	for id, outcome := range map[string]string{"ok": "ok", "fails": "exception", "cancelled": "cancelled"} {
		waitFor(t, func() bool { return len(box.of(t, id)) == 2 })
		deliveries := box.of(t, id)
		for _, d := range deliveries {
			if !d.signedBy(t, webhookSecret) || !d.signedBy(t, nextWebhookSecret) ||
				d.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: headers %v", id, d.header)
			}
			seconds, err := strconv.ParseInt(d.header.Get("webhook-timestamp"), 10, 64)
			if at := time.Unix(seconds, 0); err != nil || at.Before(began.Truncate(time.Second)) || at.After(time.Now()) {
				t.Errorf("%s: sent at %q", id, d.header.Get("webhook-timestamp"))
			}
			tampered := delivery{d.header, strings.Replace(d.body, `"execution_id"`, `"execution_Id"`, 1)}
			if tampered.signedBy(t, webhookSecret) {
				t.Errorf("%s: another body has the same signature", id)
			}
		}
		if deliveries[0].body != deliveries[1].body {
			t.Errorf("%s: the second attempt has another body", id)
		}
		var shown struct {
			Result json.RawMessage `json:"result"`
		}
		if err := json.Unmarshal([]byte(s.ask("GET", "/executions/"+id, nil).body), &shown); err != nil {
			t.Fatal(err)
		}
		m := deliveries[0].message(t)
		if m.Data.Outcome != outcome || m.Data.BusinessID != "b-1" || !sameJSON(m.Data.Result, shown.Result) ||
			m.Timestamp.Before(began) {
			t.Errorf("%s: the callback has %s\nand the API has %s", id, deliveries[0].body, shown.Result)
		}
	}
	if code := s.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	box.mu.Lock()
	defer box.mu.Unlock()
	if len(box.kept) != 3 {
		t.Errorf("%d messages", len(box.kept))
	}
	if log := s.Log.String(); strings.Contains(log, "hunter2") || strings.Contains(log, "MfKQ9r8") {
		t.Errorf("the log contains a secret: %s", log)
	}
}

// TestServeSendsCallbacksOnlyToPermittedAddresses: without a secret or for a private address, serve sends nothing. The
// log names the execution and its trace, and the execution itself succeeds.
func TestServeSendsCallbacksOnlyToPermittedAddresses(t *testing.T) {
	api, box := newGateAPI(t), newMailbox(t)
	secrets := writeFile(t, t.TempDir(), "webhook.secret", webhookSecret)
	body := script("pass").with("execution_id", "e").with("callback_url", box.URL)
	t.Run("no secret", func(t *testing.T) {
		s := startServe(t, "--warm", "0", "--api-root", api.root())
		if got := s.ask("POST", "/executions", body); got.status != 400 || !strings.Contains(got.body, `{"callback_url":[`) {
			t.Errorf("%d %s", got.status, got.body)
		}
	})
	t.Run("a private address", func(t *testing.T) {
		s := startServe(t, "--warm", "0", "--api-root", api.root(), "--webhook-secret-file", secrets)
		const traceID = "0af7651916cd43dd8448eb211c80319c"
		traced := body.with("traceparent", "00-"+traceID+"-b7ad6b7169203331-01")
		if got := s.ask("POST", "/executions", traced); got.status != 202 {
			t.Errorf("%d %s", got.status, got.body)
		}
		if ended := s.events("e").until("finished"); !strings.Contains(ended, `"outcome":"ok"`) {
			t.Errorf("finished with %s", ended)
		}
		waitFor(t, func() bool { return strings.Contains(s.Log.String(), "a callback was not delivered") })
		line, _, _ := strings.Cut(s.Log.String()[strings.Index(s.Log.String(), "a callback was not delivered"):], "\n")
		if !strings.Contains(line, traceID) || !strings.Contains(line, `"execution_id":"e"`) {
			t.Errorf("the line does not name the execution: %s", line)
		}
	})
	if sent := box.of(t, "e"); sent != nil {
		t.Errorf("sent %v", sent)
	}
}
