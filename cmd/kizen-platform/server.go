package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

const (
	apiRoot = "/api"

	// shutdownGrace is how long calls in flight may take after the platform was told to stop.
	shutdownGrace = 10 * time.Second
)

// config is what a platform is made of. All of it is required.
type config struct {
	verifier keyVerifier
	ping     func(context.Context) error // whether the store answers
	log      *slog.Logger
}

// platform serves the API.
type platform struct {
	config
	team    *team
	records *recordStore
}

func newPlatform(c config) *platform {
	return &platform{config: c, team: newTeam(), records: newRecordStore()}
}

// handler returns every route of the platform.
func (p *platform) handler() http.Handler {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.UseEscapedPath = true // an encoded slash belongs to its segment
	engine.UnescapePathValues = true
	engine.RedirectTrailingSlash = false
	engine.HandleMethodNotAllowed = true
	engine.Use(p.logCalls, gin.CustomRecoveryWithWriter(nil, p.recovered))
	engine.NoRoute(func(c *gin.Context) {
		refuse(c, http.StatusNotFound, "not_found", "there is nothing at %s", c.Request.URL.Path)
	})
	engine.NoMethod(func(c *gin.Context) {
		refuse(c, http.StatusMethodNotAllowed, "method_not_allowed", "%s is not possible here; use %s",
			c.Request.Method, c.Writer.Header().Get("Allow"))
	})

	engine.GET("/healthz", p.health)
	api := engine.Group(apiRoot, p.authenticate)
	api.GET("/custom-objects", p.listObjects)
	api.GET("/team", p.listTeam)
	api.GET("/team/:id", p.readMember)
	api.GET("/records/:object", p.listRecords)
	api.POST("/records/:object", p.createRecord)
	api.POST("/records/:object/search", p.searchRecords)
	api.GET("/records/:object/:id", p.readRecord)
	api.PATCH("/records/:object/:id", p.patchRecord)
	api.DELETE("/records/:object/:id", p.deleteRecord)
	return engine
}

// serve answers calls on listener until ctx ends, then lets those in flight finish. It calls ready with the API root once
// calls are answered.
func (p *platform) serve(ctx context.Context, listener net.Listener, ready func(apiRoot string) error) error {
	server := &http.Server{
		Handler:           p.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

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

// health answers probes: 200 while the store answers, 503 otherwise.
func (p *platform) health(c *gin.Context) {
	if err := p.ping(c.Request.Context()); err != nil {
		p.log.WarnContext(c.Request.Context(), "the store does not answer", "error", err)
		refuse(c, http.StatusServiceUnavailable, "store_unavailable", "the store does not answer")
		return
	}
	c.JSON(http.StatusOK, gin.H{"status": "ok"})
}

// logCalls writes one line a call: never a header or a query, which may hold secrets.
func (p *platform) logCalls(c *gin.Context) {
	start := time.Now()
	c.Next()
	attrs := []any{"method", c.Request.Method, "path", c.Request.URL.Path, "status", c.Writer.Status(), "duration_ms", time.Since(start).Milliseconds()}
	if id, ok := identityOf(c); ok {
		attrs = append(attrs, "business_id", id.BusinessID, "account_id", id.AccountID, "execution_id", id.ExecutionID)
	}
	p.log.DebugContext(c.Request.Context(), "call", attrs...)
}

func (p *platform) recovered(c *gin.Context, cause any) {
	p.log.ErrorContext(c.Request.Context(), "a handler panicked", "route", c.FullPath(), "cause", cause)
	refuse(c, http.StatusInternalServerError, "internal", "the platform failed; its log says why")
}
