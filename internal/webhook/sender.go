package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	// MaxBody is the largest body that is sent, in bytes.
	MaxBody = 16 << 20
	// maxAnswer is how much of a response is read, so that its connection can be reused; the content is ignored.
	maxAnswer = 64 << 10
)

// Config configures a [Sender]. Secrets is required.
type Config struct {
	// Secrets sign each message; see [ParseSecrets].
	Secrets []Secret
	// Allowed are networks that may receive messages although they are not public; their hosts may also receive them
	// over plain HTTP.
	Allowed []netip.Prefix
	// Timeout limits one attempt; default 15 s.
	Timeout time.Duration
	// Attempts limits [Sender.Deliver]; default [DefaultAttempts]. LongestDelay limits the time between two attempts,
	// even if the receiver asks for more; default one hour.
	Attempts     int
	LongestDelay time.Duration
	// CA holds the roots that verify the servers' certificates; if nil, the system's roots do.
	CA *x509.CertPool
}

// Message is one message to one receiver.
type Message struct {
	// ID is the same in every attempt. It contains no full stop, because that separates the signed parts.
	ID   string
	URL  string
	Body []byte // JSON
}

// Sender sends messages. It is safe for concurrent use.
type Sender struct {
	config  Config
	signers []*standardwebhooks.Webhook
	client  *http.Client
}

// New returns a sender. The caller ends its connections with [Sender.Close].
func New(config Config) (*Sender, error) {
	if len(config.Secrets) == 0 {
		return nil, errors.New("a webhook sender needs a secret")
	}
	if config.Timeout == 0 {
		config.Timeout = 15 * time.Second
	}
	if config.Attempts == 0 {
		config.Attempts = DefaultAttempts
	}
	if config.LongestDelay == 0 {
		config.LongestDelay = longestDelay
	}
	s := &Sender{config: config, client: &http.Client{
		Transport:     transport(config),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, secret := range config.Secrets {
		if len(secret.key) < shortestSecret {
			return nil, errSecret
		}
		signer, err := standardwebhooks.NewWebhookRaw(secret.key)
		if err != nil {
			return nil, errSecret
		}
		s.signers = append(s.signers, signer)
	}
	return s, nil
}

// transport uses separate connections for http and https, because different addresses are allowed for them.
func transport(config Config) *http.Transport {
	g := guard{config.Allowed}
	plain := &net.Dialer{Timeout: config.Timeout, Control: g.control(false)}
	secure := &tls.Dialer{
		NetDialer: &net.Dialer{Timeout: config.Timeout, Control: g.control(true)},
		Config:    &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: config.CA},
	}
	return &http.Transport{
		DialContext: plain.DialContext, DialTLSContext: secure.DialContext,
		DisableCompression: true, MaxIdleConnsPerHost: 2, MaxIdleConns: 64, IdleConnTimeout: 30 * time.Second,
		MaxResponseHeaderBytes: maxAnswer,
	}
}

// Close closes the idle connections.
func (s *Sender) Close() { s.client.CloseIdleConnections() }

// Try makes one attempt. Every error is a [*DeliveryError].
func (s *Sender) Try(ctx context.Context, m Message) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	request, err := s.request(ctx, m)
	if err != nil {
		return err
	}
	response, err := s.client.Do(request)
	if err != nil {
		return refusedBy(request.URL.Host, err)
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.CopyN(io.Discard, response.Body, maxAnswer) // best effort: the rest of a response is not needed
	return judge(request.URL.Host, response)
}

func (s *Sender) request(ctx context.Context, m Message) (*http.Request, error) {
	target, err := url.Parse(m.URL)
	if err != nil || target.Host == "" || target.Scheme != "https" && target.Scheme != "http" || target.User != nil {
		return nil, &DeliveryError{Reason: "the callback must be an http or https URL without a user name", Final: true}
	}
	refuse := func(reason string) error { return &DeliveryError{Host: target.Host, Reason: reason, Final: true} }
	if len(m.Body) > MaxBody {
		return nil, refuse(fmt.Sprintf("the message has %d bytes, more than the limit of %d", len(m.Body), MaxBody))
	}
	if m.ID == "" || strings.ContainsAny(m.ID, ". \r\n") {
		return nil, refuse(fmt.Sprintf("%q is not a valid message id", m.ID))
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(m.Body))
	if err != nil {
		return nil, refuse("the callback is not a URL that can be requested")
	}
	now := time.Now()
	signatures := make([]string, len(s.signers))
	for i, signer := range s.signers {
		if signatures[i], err = signer.Sign(m.ID, now, m.Body); err != nil {
			return nil, refuse("the message cannot be signed")
		}
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "kizen-sidecar")
	request.Header.Set(standardwebhooks.HeaderWebhookID, m.ID)
	request.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	request.Header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	return request, nil
}

// judge interprets a response: any status from 200 to 299 accepts the message (Standard Webhooks, "Delivery"), and 410
// ends the delivery.
func judge(host string, response *http.Response) error {
	status := response.StatusCode
	switch {
	case status >= 200 && status <= 299:
		return nil
	case status == http.StatusGone:
		return &DeliveryError{Host: host, Status: status, Reason: "accepts no more messages", Final: true}
	case status >= 300 && status <= 399:
		return &DeliveryError{Host: host, Status: status, Reason: "answered with a redirect, which is not followed"}
	}
	return &DeliveryError{
		Host: host, Status: status, Reason: "did not accept it",
		RetryAfter: retryAfter(response.Header.Get("Retry-After"), time.Now()),
	}
}

// refusedBy describes a failure before the response. It omits the URL, which net/http would add.
func refusedBy(host string, err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	final := errors.Is(err, errAddress) || errors.Is(err, errPlain)
	reason := "cannot be reached"
	if final {
		reason = "is not an allowed receiver"
	}
	return &DeliveryError{Host: host, Reason: reason, Final: final, Err: err}
}
