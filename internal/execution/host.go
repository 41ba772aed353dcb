package execution

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/proxy"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// Interpreters provides sandboxed Pythons, each for one execution: a [runner.Runner] starts them, a pool keeps them
// warm.
type Interpreters interface {
	Prepare(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (*runner.Prepared, error)
}

// Config is shared by the executions of a [Host]. All fields except Interpreters, Audit, Telemetry and Log are
// required.
type Config struct {
	Redis  redis.UniversalClient
	Keys   *minter.KeySet
	Engine *policy.Engine
	// Proxy is the configuration of every proxy, without the fields that belong to one execution.
	Proxy proxy.Config
	// Interpreters may be nil for a Host that only opens standalone proxies.
	Interpreters Interpreters
	// Learn permits the connections that no rule decides on. Guardrails and forbid rules still apply.
	Learn bool
	// Audit records a JSON line for every call. If nil, calls are not recorded.
	Audit proxy.Audit
	// Telemetry traces and measures every execution. If nil, it is off.
	Telemetry *telemetry.Telemetry
	// Log logs each execution, and problems that need an operator. If nil, logging is disabled.
	Log *slog.Logger
}

// Host runs executions. It is safe for concurrent use.
type Host struct {
	config       Config
	minter       *minter.Minter
	keys         keyStore
	interpreters interpreters
	guarded      *guarded
}

// NewHost validates config. It opens nothing.
func NewHost(config Config) (*Host, error) {
	if config.Engine == nil || config.Proxy.APIRoot == nil {
		return nil, errors.New("a host needs a policy engine and an api root")
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Telemetry == nil {
		config.Telemetry = &telemetry.Telemetry{}
	}
	if metrics := config.Telemetry.Metrics(); metrics != nil {
		config.Redis.AddHook(redisHook{metrics})
	}
	m, err := minter.New(minter.Config{Redis: config.Redis, Keys: config.Keys, Admit: admit,
		Renewed: renewed(config.Telemetry.Metrics())})
	if err != nil {
		return nil, err
	}
	return &Host{config: config, minter: m, keys: minterAdapter{m},
		interpreters: interpretersAdapter{config.Interpreters}, guarded: newGuarded(config)}, nil
}

// Ready returns why an execution could not get a key now. It leaves nothing in Redis.
func (h *Host) Ready(ctx context.Context) error { return h.minter.Probe(ctx) }

// admit decides whether a key may be minted for an account. Only the platform knows whether the account exists.
func admit(_ context.Context, id minter.Identity, suspended []minter.Reason) error {
	applicant := policy.Applicant{Type: id.AccountType}
	for _, reason := range suspended {
		applicant.Suspended = append(applicant.Suspended, string(reason))
	}
	refusal := policy.Admit(applicant)
	if refusal == nil {
		return nil
	}
	denied := &minter.DeniedError{Code: refusal.Code, Reason: refusal.Reason}
	if refusal.Code == policy.CodeSuspended {
		denied.Err = minter.ErrSuspended
	}
	return denied
}

// principal returns the policy principal of an identity.
func (h *Host) principal(id minter.Identity) (*policy.Principal, error) {
	principal, err := h.config.Engine.For(policy.Account{ID: id.AccountID, Type: id.AccountType,
		BusinessID: id.BusinessID})
	if err != nil {
		return nil, fmt.Errorf("account %q: %w", id.AccountID, err)
	}
	return principal, nil
}
