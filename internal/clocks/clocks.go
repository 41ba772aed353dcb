// Package clocks compares the clock of this machine with those of Redis and of the API, because a key must be valid
// according to all three.
package clocks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/minter"
)

// interval is how often Watch reads the clock of Redis.
const interval = time.Minute

// Tolerable is the largest difference between two clocks that is not reported: half of the leeway of verifiers.
const Tolerable = minter.DefaultLeeway / 2

// Watch warns when the clocks of this machine and of Redis begin to differ, until stop is called. If the Redis user
// may not read the time, Watch ends.
func Watch(ctx context.Context, client redis.UniversalClient, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watching routine.Group
	watching.Go(func() {
		ticks := time.NewTicker(interval)
		defer ticks.Stop()
		for warned := false; ; {
			skew, err := minter.ClockSkew(ctx, client)
			if redis.HasErrorPrefix(err, "NOPERM") {
				return
			}
			bad := err == nil && skew.Abs() > Tolerable
			if bad && !warned {
				log.Warn("the clocks of this machine and of redis differ; keys may be refused as expired or not yet valid: synchronise them",
					"redis_ahead", skew.Round(time.Millisecond).String(), "allowed", minter.DefaultLeeway.String())
			}
			if err == nil {
				warned = bad
			}
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
			}
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

// OfAPI returns how far the clock of the API is ahead of this machine's, by the Date header of a response (RFC 9110
// section 6.6.1), which has whole seconds.
func OfAPI(ctx context.Context, root *url.URL, certificates *x509.CertPool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, root.String(), nil)
	if err != nil {
		return 0, fmt.Errorf("read the time of the API: %w", err)
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: certificates}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	began := time.Now()
	answer, err := client.Do(request)
	if err != nil {
		return 0, fmt.Errorf("read the time of the API: %w", err)
	}
	defer answer.Body.Close()
	there, err := http.ParseTime(answer.Header.Get("Date"))
	if err != nil {
		return 0, fmt.Errorf("the API at %s sends no Date header", root.Host)
	}
	middle := began.Add(time.Since(began) / 2).Round(0)
	return there.Add(time.Second / 2).Sub(middle), nil // whole seconds are rounded down
}
