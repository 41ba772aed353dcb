package main

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/executions"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// webhookFlags say how callbacks are sent.
type webhookFlags struct {
	WebhookSecretFile string   `help:"File of the secrets that callbacks are signed with, one a line (Standard Webhooks: whsec_...). Without it executions with a callback_url are refused." placeholder:"FILE" group:"Callbacks"`
	WebhookAllow      []string `help:"Network whose hosts may be called back although they are not public, and over plain HTTP. Repeatable." placeholder:"CIDR" group:"Callbacks"`
}

// callbacksAtOnce bounds the deliveries of one serve; callbackAttempts what it
// makes of each: about half a minute, since they are kept in memory alone.
const (
	callbacksAtOnce  = 64
	callbackAttempts = 6
)

// callbacks delivers the ends of executions. A nil one delivers none.
type callbacks struct {
	sender *webhook.Sender
	log    *slog.Logger
	slots  chan struct{}
	all    sync.WaitGroup
	ctx    context.Context
	cut    context.CancelFunc
}

// callbacks are the flags, checked; nil where there are to be none.
func (f webhookFlags) callbacks(log *slog.Logger) (*callbacks, error) {
	if f.WebhookSecretFile == "" {
		return nil, nil
	}
	data, err := readFile("webhook secret file", f.WebhookSecretFile)
	if err != nil {
		return nil, err
	}
	config := webhook.Config{Attempts: callbackAttempts}
	if config.Secrets, err = webhook.ParseSecrets(data); err != nil {
		return nil, usagef("webhook secret file %q: %w", f.WebhookSecretFile, err)
	}
	for _, text := range f.WebhookAllow {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, usagef("--webhook-allow %q is not a network; write it like 10.0.0.0/8", text)
		}
		config.Allowed = append(config.Allowed, network)
	}
	c := &callbacks{log: log, slots: make(chan struct{}, callbacksAtOnce)}
	if c.sender, err = webhook.New(config); err != nil {
		return nil, usageError{err}
	}
	c.ctx, c.cut = context.WithCancel(context.Background())
	return c, nil
}

// sending is the sender; nil where there is none.
func (c *callbacks) sending() *webhook.Sender {
	if c == nil {
		return nil
	}
	return c.sender
}

// finished delivers the end of an execution that wants it, behind the back of
// who calls. It is executions.Config's Finished.
func (c *callbacks) finished(e *executions.Execution) {
	if c == nil || e.Callback() == "" {
		return
	}
	ctx := telemetry.WithExecution(telemetry.WithTrace(c.ctx, e.Traceparent()), e.ID())
	snapshot := e.Snapshot()
	ended := webhook.Finished{ExecutionID: e.ID(), BusinessID: e.BusinessID(), Outcome: snapshot.Outcome, Result: snapshot.Result}
	if snapshot.Failure != "" {
		ended.Outcome, ended.Result = "not_started", nil
	}
	message, err := ended.Message(e.Callback(), snapshot.FinishedAt)
	if err != nil {
		c.log.ErrorContext(ctx, "a callback could not be written", "error", err)
		return
	}
	c.all.Go(func() {
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
			err = c.sender.Deliver(c.ctx, message)
		case <-c.ctx.Done():
			err = c.ctx.Err()
		}
		if err != nil {
			c.log.ErrorContext(ctx, "a callback was not delivered", "error", err)
		}
	})
}

// close lets deliveries finish within grace, and gives up the rest.
func (c *callbacks) close(grace time.Duration) {
	if c == nil {
		return
	}
	timer := time.AfterFunc(grace, c.cut)
	c.all.Wait()
	timer.Stop()
	c.cut()
	c.sender.Close()
}
