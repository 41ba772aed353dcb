// Package platform is a small reference platform: it accepts the keys that kizen-sidecar mints and serves enough of
// Kizen's API for development, demos and tests.
package platform

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

const (
	apiRoot = "/api"

	// shutdownGrace is how long calls in flight may take after the platform begins to stop.
	shutdownGrace = 10 * time.Second
)

// Config configures a platform. All fields except TrustPublished are required.
type Config struct {
	Redis redis.UniversalClient
	Keys  *minter.KeySet
	// TrustPublished accepts signing keys that are not in Keys, but published in Redis.
	TrustPublished bool
	EmailDomain    string // of the addresses of service accounts
	Log            *slog.Logger
}

// Platform serves the API. [New] returns one.
type Platform struct {
	config   Config
	verifier *minter.Verifier
	engine   *policy.Engine
	accounts accountStore
	stored   *minter.StoredKeys
	uses     storedUses
	timeline timeline
	records  *recordStore
	openAPI  []byte                      // the description of the API
	keys     http.Handler                // serves the public keys
	verify   http.Handler                // serves verdicts for proxies in front of other services
	ping     func(context.Context) error // asks the store for a reply
	probe    func(context.Context) error // writes to the store
	log      *slog.Logger
}

// New returns a platform for c. It does not close c.Redis.
func New(c Config) (*Platform, error) {
	engine, err := policy.ForPlatform()
	if err != nil {
		return nil, err
	}
	stored, err := minter.NewStoredKeys(c.Redis, c.Keys)
	if err != nil {
		return nil, err
	}
	document, err := openAPIDocument()
	if err != nil {
		return nil, err
	}
	p := &Platform{
		config:   c,
		openAPI:  document,
		engine:   engine,
		accounts: accountStore{c.Redis, c.EmailDomain},
		stored:   stored,
		timeline: timeline{c.Redis},
		records:  newRecordStore(),
		keys:     minter.JWKSHandler(c.Keys),
		ping:     func(ctx context.Context) error { return c.Redis.Ping(ctx).Err() },
		probe:    func(ctx context.Context) error { return c.Redis.Set(ctx, readinessKey, "1", time.Minute).Err() },
		log:      c.Log,
	}
	p.uses = storedUses{redis: c.Redis, log: c.Log, written: map[string]time.Time{}}
	p.verifier, err = minter.NewVerifier(minter.VerifierConfig{
		Redis: c.Redis, Keys: c.Keys, TrustPublished: c.TrustPublished, Admit: p.admit, StoredUsed: p.uses.note,
	})
	if err != nil {
		return nil, err
	}
	p.verify = minter.VerifyHandler(p.verifier, func(ctx context.Context, err error) {
		c.Log.ErrorContext(ctx, "a key could not be checked", "error", err)
	})
	return p, nil
}

// endpoint is one route of the API.
type endpoint struct {
	method, path string // the path is below the API root
	handle       gin.HandlerFunc
}

func (p *Platform) endpoints() []endpoint {
	return []endpoint{
		{"GET", "/custom-objects", p.listObjects},
		{"GET", "/records/:object", p.listRecords},
		{"POST", "/records/:object", p.createRecord},
		{"POST", "/records/:object/search", p.searchRecords},
		{"GET", "/records/:object/:id", p.readRecord},
		{"PATCH", "/records/:object/:id", p.patchRecord},
		{"DELETE", "/records/:object/:id", p.deleteRecord},

		{"GET", "/team", p.listTeam},
		{"GET", "/team/typeahead", p.typeahead},
		{"GET", "/team/:id", p.readMember},
		{"GET", "/billing/seats", p.listSeats},

		{"GET", "/service-accounts", p.listAccounts},
		{"POST", "/service-accounts", p.createAccount},
		{"GET", "/service-accounts/:account", p.readAccount},
		{"PATCH", "/service-accounts/:account", p.updateAccount},
		{"DELETE", "/service-accounts/:account", p.archiveAccount},
		{"GET", "/service-accounts/:account/permission-groups", p.readGroups},
		{"PUT", "/service-accounts/:account/permission-groups", p.setGroups},
		{"GET", "/service-accounts/:account/tokens", p.listTokens},
		{"POST", "/service-accounts/:account/tokens/rotate", p.rotateToken},
		{"DELETE", "/service-accounts/:account/tokens/secondary", p.deleteSecondary},
		{"GET", "/integrations/:integration", p.readIntegration},
		{"PATCH", "/integrations/:integration", p.setIntegration},

		{"GET", "/permission-groups", p.listGroups},

		{"POST", "/api-keys", p.createAPIKey},
		{"DELETE", "/api-keys/:key", p.deleteAPIKey},
		{"GET", "/business-config/export", p.exportConfig},
		{"POST", "/business-config/import", p.importConfig},
		{"GET", "/timeline", p.readTimeline},
	}
}

// routes returns every route of the platform.
func (p *Platform) routes() *gin.Engine {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.UseEscapedPath = true // an encoded slash belongs to its segment
	engine.UnescapePathValues = true
	engine.RedirectTrailingSlash = false
	engine.HandleMethodNotAllowed = true
	engine.Use(p.logCalls, gin.CustomRecoveryWithWriter(nil, p.recovered))
	engine.NoRoute(func(c *gin.Context) {
		refuse(c, http.StatusNotFound, "not_found", "no such path: %s", c.Request.URL.Path)
	})
	engine.NoMethod(func(c *gin.Context) {
		refuse(c, http.StatusMethodNotAllowed, "method_not_allowed", "%s is not possible here; use %s",
			c.Request.Method, c.Writer.Header().Get("Allow"))
	})

	handle(engine, "GET", "/healthz", p.health(p.ping))
	handle(engine, "GET", "/readyz", p.health(p.probe))
	handle(engine, "GET", "/openapi.json", p.readOpenAPI)
	handle(engine, "GET", "/.well-known/jwks.json", gin.WrapH(p.keys))
	engine.Any("/verify", gin.WrapH(p.verify))
	engine.Any("/verify/*path", gin.WrapH(p.verify)) // Envoy appends the path of the request to the prefix
	api := engine.Group(apiRoot, p.record, p.authenticate, p.authorize)
	for _, e := range p.endpoints() {
		handle(api, e.method, e.path, e.handle)
	}
	return engine
}

// handle registers a route. Every GET route also answers HEAD (RFC 9110 section 9.3.2): net/http omits the body.
func handle(on gin.IRoutes, method, path string, do gin.HandlerFunc) {
	on.Handle(method, path, do)
	if method == http.MethodGet {
		on.Handle(http.MethodHead, path, do)
	}
}

// unavailable responds to a call that cannot be served now, and logs the reason for the operator.
func (p *Platform) unavailable(c *gin.Context, err error) {
	p.log.ErrorContext(c.Request.Context(), "a call failed", "route", c.FullPath(), "error", err)
	refuse(c, http.StatusServiceUnavailable, "store_unavailable", "the store does not answer; try again")
}

// Serve answers calls on listener until ctx ends, then lets those in flight finish. It calls ready with the API root
// once calls are answered. Meanwhile it reloads the keys when their files change and on SIGHUP.
func (p *Platform) Serve(ctx context.Context, listener net.Listener, ready func(apiRoot string) error) error {
	defer p.config.Keys.Follow(ctx, p.reloaded, func(err error) {
		p.log.Warn("the key files cannot be watched; send SIGHUP after a change", "error", err)
	})()
	server := &http.Server{
		Handler:           p.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	routine.Go(func() { served <- server.Serve(listener) })

	err := ready("http://" + listener.Addr().String() + apiRoot)
	if err == nil {
		select {
		case <-ctx.Done():
			p.log.Info("stopping")
		case err := <-served:
			return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
		}
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if stopErr := server.Shutdown(grace); stopErr != nil {
		err = errors.Join(err, fmt.Errorf("calls were cut off after %s: %w", shutdownGrace, stopErr), server.Close())
	}
	<-served
	return err
}

// reloaded logs the result of a reload of the keys.
func (p *Platform) reloaded(err error) {
	if err != nil {
		p.log.Error("the keys could not be reloaded; the previous ones stay in use", "error", err)
		return
	}
	p.log.Info("keys loaded")
}

// readinessKey is the key that /readyz writes, because a store that replies may still refuse writes.
const readinessKey = "kizen:{readiness}:platform"

// health responds to probes: 200 if check succeeds, 503 otherwise.
func (p *Platform) health(check func(context.Context) error) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := check(c.Request.Context()); err != nil {
			p.log.WarnContext(c.Request.Context(), "the store is not usable", "error", err)
			refuse(c, http.StatusServiceUnavailable, "store_unavailable",
				"the store cannot be used; the platform's log has the reason")
			return
		}
		c.JSON(http.StatusOK, gin.H{"status": "ok"})
	}
}

// logCalls writes one line for each call: the route, but nothing that the caller wrote, because that may contain
// secrets.
func (p *Platform) logCalls(c *gin.Context) {
	start := time.Now()
	c.Next()
	attrs := []any{"method", c.Request.Method, "route", c.FullPath(), "status", c.Writer.Status(), "duration_ms",
		time.Since(start).Milliseconds()}
	if who := callerOf(c); who.principal != nil {
		attrs = append(attrs, "business_id", who.BusinessID, "account_id", who.AccountID, "execution_id", who.ExecutionID)
	}
	p.log.DebugContext(c.Request.Context(), "call", attrs...)
}

func (p *Platform) recovered(c *gin.Context, cause any) {
	p.log.ErrorContext(c.Request.Context(), "a handler panicked", "route", c.FullPath(), "cause", cause)
	refuse(c, http.StatusInternalServerError, "internal", "the platform failed; its log says why")
}
