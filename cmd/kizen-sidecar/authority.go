package main

import (
	"log/slog"
	"net"

	"github.com/kizen/kizen-sidecar/internal/audit"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/proxy"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// authorityFlags say by which rules executions act, with what keys, on which
// API.
type authorityFlags struct {
	redisFlags
	keySetFlags
	policyFlags
	apiFlags
	DevelopmentKeys bool `help:"Sign with a pair of this process's own although neither Redis nor the API is on this machine. Who can write to that Redis can then mint." group:"Keys"`
}

// checkedFlags is what authorityFlags mean: all that the caller can get wrong has
// been checked, and nothing is open.
type checkedFlags struct {
	flags   authorityFlags
	keys    *minter.KeySet
	ownKeys bool // nothing is configured, and keys are of this process
	engine  *policy.Engine
	proxy   proxy.Config
	log     *slog.Logger
	// telemetry sees every execution; nil: nothing does.
	telemetry *telemetry.Telemetry
}

// check reads and checks everything that the flags name.
func (f authorityFlags) check(log *slog.Logger) (checkedFlags, error) {
	g := checkedFlags{flags: f, log: log}
	var err error
	if g.proxy, err = f.proxyConfig(log); err != nil {
		return g, err
	}
	if g.engine, err = f.engine(); err != nil {
		return g, err
	}
	if g.keys, g.ownKeys, err = f.keySetFlags.open(); err != nil {
		return g, err
	}
	if g.ownKeys && !f.DevelopmentKeys && !redisconn.OnThisMachine(f.RedisURL) && !hosts.IsLoopback(net.JoinHostPort(g.proxy.APIRoot.Hostname(), "80")) {
		return g, usagef("no signing keys are configured, and neither redis nor the API is on this machine; name keys with --keys, or allow a pair of this process's own with --development-keys")
	}
	return g, nil
}

// openHost is a host of executions and what it holds open.
type openHost struct {
	*execution.Host
	store *store
	audit *audit.File
	log   *slog.Logger
}

// open connects to Redis and opens the audit.
func (g checkedFlags) open(interpreters execution.Interpreters) (*openHost, error) {
	s := &openHost{log: g.log}
	if err := s.start(g, interpreters); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *openHost) start(g checkedFlags, interpreters execution.Interpreters) (err error) {
	if name := g.flags.AuditFile; name != "" {
		if s.audit, err = audit.Open(name); err != nil {
			return usagef("cannot write --audit-file %q: %w", name, err)
		}
	}
	if s.store, err = g.flags.redisFlags.open(g.log); err != nil {
		return err
	}
	if g.ownKeys {
		g.log.Info("no signing keys are configured: using a pair of this process, whose public half is published in redis; set --keys for a real platform")
	}
	config := execution.Config{
		Redis: s.store, Keys: g.keys, Engine: g.engine, Proxy: g.proxy, Interpreters: interpreters, Telemetry: g.telemetry, Log: g.log,
	}
	if s.audit != nil {
		config.Audit = s.audit
	}
	s.Host, err = execution.NewHost(config)
	return err
}

// close gives back what open took. What goes wrong is logged: the outcome of
// what ran stands.
func (s *openHost) close() {
	if s.store != nil {
		s.store.close()
	}
	if s.audit != nil {
		s.audit.Close(s.log)
	}
}

// checkType refuses an unknown account type.
func checkType(engine *policy.Engine, id minter.Identity) error {
	_, err := engine.For(policy.Account{ID: id.AccountID, Type: id.AccountType, BusinessID: id.BusinessID})
	return err
}
