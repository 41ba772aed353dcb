package main

import (
	"context"
	"crypto/x509"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/minter"
)

func TestRedisOverTLSWithAClientCertificate(t *testing.T) {
	ca := redistest.NewAuthority(t)
	ca.Issue(t, "client", x509.ExtKeyUsageClientAuth)
	config := redisconn.Config{URL: redistest.StartTLS(t, ca), CAFile: ca.File("ca.crt"), CertFile: ca.File("client.crt"), KeyFile: ca.File("client.key")}

	at, _ := startPlatform(t, "--redis-url", config.URL, "--redis-ca", config.CAFile, "--redis-cert", config.CertFile, "--redis-key", config.KeyFile)
	w := newWorldOn(t, at, config)
	w.want(200, w.headers, "GET", "/custom-objects", "")

	for name, arguments := range map[string][]string{
		"no CA":                 {"--redis-cert", config.CertFile, "--redis-key", config.KeyFile},
		"no client certificate": {"--redis-ca", config.CAFile},
	} {
		at, log := startPlatform(t, append([]string{"--redis-url", config.URL}, arguments...)...)
		w.on(at.APIRoot).want(503, w.headers, "GET", "/custom-objects", "")
		if !strings.Contains(log.String(), "certificate") {
			t.Errorf("%s: the log does not say why: %s", name, log)
		}
	}
	for name, arguments := range map[string][]string{
		"no such CA":            {"--redis-ca", ca.File("none")},
		"key without its half":  {"--redis-key", config.KeyFile},
		"files for a plain URL": {"--redis-url", "redis://127.0.0.1:1", "--redis-ca", config.CAFile},
	} {
		if code := run(t.Context(), append([]string{"--redis-url", config.URL}, arguments...), io.Discard, io.Discard); code != exitUsage {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
}

func TestSigningKeysComeFromTheEnvironment(t *testing.T) {
	dir := keyDirectory(t)
	files, err := filepath.Glob(filepath.Join(dir, "*.jwk"))
	must(t, err)
	var jwks []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		must(t, err)
		jwks = append(jwks, string(data))
	}
	t.Setenv(signingKeysVariable, `{"keys":[`+strings.Join(jwks, ",")+`]}`)
	server := redistest.Start(t)
	at, _ := startPlatform(t, "--redis-url", server.URL())
	w := sharing(t, at, dir)
	w.want(200, w.headers, "GET", "/custom-objects", "")
	_, headers := w.integrationAccount(`{"name":"x"}`)
	w.want(200, headers, "GET", "/custom-objects", "")
	stranger := newWorld(t, at) // its key is published in Redis, which is not trusted where keys are configured
	stranger.refused(401, minter.CodeUnknownKey, "", stranger.headers, "GET", "/custom-objects", "")

	// The directory wins over the variable, which another process may have set.
	other := keyDirectory(t)
	at, _ = startPlatform(t, "--redis-url", server.URL(), "--keys", other)
	w.on(at.APIRoot).refused(401, minter.CodeUnknownKey, "", w.headers, "GET", "/custom-objects", "")
	w = sharing(t, at, other)
	w.want(200, w.headers, "GET", "/custom-objects", "")

	t.Setenv(signingKeysVariable, "no-key-at-all")
	var log logBuffer
	if code := run(t.Context(), []string{"--redis-url", server.URL()}, io.Discard, &log); code != exitUsage || strings.Contains(log.String(), "no-key-at-all") {
		t.Errorf("keys that are none: exit code %d, %s", code, log.String())
	}
}

// TestNoPasswordOfRedisIsEverLogged runs the platform at its most talkative, on stores that answer and that do not.
func TestNoPasswordOfRedisIsEverLogged(t *testing.T) {
	const given = "pa55-of-redis"
	locked := redistest.Start(t, "--requirepass", given)
	for name, row := range map[string]struct{ url, logged string }{
		"embedded": {"", `"redis_url":"redis://127.0.0.1:`},
		"answers":  {"redis://:" + given + "@" + locked.Addr, `"route":"/healthz"`},
		"refuses":  {"redis://:" + given + "-wrong@" + locked.Addr, "refused the user or the password"},
		"is down":  {"redis://:" + given + "@127.0.0.1:1", "refused the connection"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ready.json")
			ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
			defer stop()
			var log logBuffer
			ended := make(chan int)
			go func() {
				ended <- run(ctx, []string{"--listen", "127.0.0.1:0", "--redis-url", row.url, "--ready-file", file, "--log-format", "json", "--log-level", "debug"}, io.Discard, &log)
			}()
			redistest.Await(t, "the platform to listen", func() bool {
				_, err := os.Stat(file)
				return err == nil
			})
			at := readReady(t, file)
			response, err := http.Get(strings.TrimSuffix(at.APIRoot, apiRoot) + "/healthz")
			must(t, err)
			must(t, response.Body.Close())
			http.DefaultClient.CloseIdleConnections()
			stop()
			if code := <-ended; code != exitOK {
				t.Errorf("exit code %d", code)
			}
			address, err := url.Parse(at.RedisURL)
			must(t, err)
			password, ok := address.User.Password()
			if !ok || !strings.Contains(log.String(), row.logged) {
				t.Fatalf("the ready file says %s, and the log lacks %q:\n%s", at.RedisURL, row.logged, log.String())
			}
			if strings.Contains(log.String(), password) {
				t.Errorf("the password is in the log:\n%s", log.String())
			}
		})
	}
}
