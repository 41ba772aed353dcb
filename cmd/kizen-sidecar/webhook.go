package main

import (
	"log/slog"
	"net/netip"

	"github.com/kizen/kizen-sidecar/internal/serve"
	"github.com/kizen/kizen-sidecar/internal/webhook"
)

// webhookFlags say how callbacks are sent.
type webhookFlags struct {
	WebhookSecretFile string   `help:"File of the secrets that callbacks are signed with, one a line (Standard Webhooks: whsec_...). Without it executions with a callback_url are refused." placeholder:"FILE" group:"Callbacks"`
	WebhookAllow      []string `help:"Network whose hosts may be called back although they are not public, and over plain HTTP. Repeatable." placeholder:"CIDR" group:"Callbacks"`
}

// callbacks are the flags, checked; nil without a secret. Callbacks that wait may hold memory bytes in total.
func (f webhookFlags) callbacks(memory int64, log *slog.Logger) (*serve.Callbacks, error) {
	if f.WebhookSecretFile == "" {
		return nil, nil
	}
	data, err := readFile("webhook secret file", f.WebhookSecretFile)
	if err != nil {
		return nil, err
	}
	var config webhook.Config
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
	c, err := serve.NewCallbacks(config, memory, log)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}
