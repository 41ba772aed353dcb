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

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
	"github.com/kizen/kizen-sidecar/minter"
)

// TestRedisOverTLSWithAClientCertificate: the platform verifies keys in a Redis that requires client certificates, and
// its log says which certificate is missing. The flags, a real Redis with TLS and the verifier meet.
func TestRedisOverTLSWithAClientCertificate(t *testing.T) {
	ca := redistest.NewAuthority(t)
	ca.Issue(t, "client", x509.ExtKeyUsageClientAuth)
	config := redisconn.Config{URL: redistest.StartTLS(t, ca), CAFile: ca.File("ca.crt"), CertFile: ca.File("client.crt"),
		KeyFile: ca.File("client.key")}

	keys, err := minter.GenerateKeySet()
	must(t, err)
	at := startPlatform(t, "--redis-url", config.URL, "--redis-ca", config.CAFile, "--redis-cert", config.CertFile,
		"--redis-key", config.KeyFile)
	if got := at.status(t, config, keys); got != http.StatusOK {
		t.Errorf("status %d", got)
	}
	for name, arguments := range map[string][]string{
		"no CA":                 {"--redis-cert", config.CertFile, "--redis-key", config.KeyFile},
		"no client certificate": {"--redis-ca", config.CAFile},
	} {
		at := startPlatform(t, append([]string{"--redis-url", config.URL}, arguments...)...)
		if got := at.status(t, config, keys); got != http.StatusServiceUnavailable ||
			!strings.Contains(at.log.String(), "certificate") {
			t.Errorf("%s: status %d, and the log should say why: %s", name, got, at.log)
		}
	}
	for name, arguments := range map[string][]string{
		"no such CA":                {"--redis-ca", ca.File("none")},
		"key without a certificate": {"--redis-key", config.KeyFile},
		"files for a plain URL":     {"--redis-url", "redis://127.0.0.1:1", "--redis-ca", config.CAFile},
	} {
		if code := run(t.Context(), append([]string{"--redis-url", config.URL}, arguments...), io.Discard, io.Discard); code != exit.Usage {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
}

// newKeys makes a directory of keys, and reads it.
func newKeys(t *testing.T) (dir string, keys *minter.KeySet) {
	t.Helper()
	dir = t.TempDir()
	for _, generate := range []func(time.Time) (minter.NewKey, error){minter.NewSigningKey, minter.NewSealingKey} {
		key, err := generate(time.Now())
		must(t, err)
		must(t, minter.WriteKey(dir, key))
	}
	keys, err := minter.LoadKeySet(minter.KeySetConfig{Path: dir})
	must(t, err)
	return dir, keys
}

// TestSigningKeysComeFromTheEnvironment: keys of the environment variable replace those published in Redis, and --keys
// overrides both. The order is visible only in which keys the running platform accepts.
func TestSigningKeysComeFromTheEnvironment(t *testing.T) {
	dir, keys := newKeys(t)
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
	config := redisconn.Config{URL: server.URL()}
	stranger, err := minter.GenerateKeySet() // its public key is in Redis, which is not trusted if keys are configured
	must(t, err)
	at := startPlatform(t, "--redis-url", server.URL())
	if own, other := at.status(t, config, keys), at.status(t, config, stranger); own != http.StatusOK ||
		other != http.StatusUnauthorized {
		t.Errorf("the keys of the variable get %d, other keys %d", own, other)
	}

	// The flag overrides the variable.
	others, otherKeys := newKeys(t)
	at = startPlatform(t, "--redis-url", server.URL(), "--keys", others)
	if variable, directory := at.status(t, config, keys), at.status(t, config, otherKeys); variable != http.StatusUnauthorized || directory != http.StatusOK {
		t.Errorf("the keys of the variable get %d, those of the directory %d", variable, directory)
	}

	t.Setenv(signingKeysVariable, "no-key-at-all")
	var log sidecartest.Buffer
	if code := run(t.Context(), []string{"--redis-url", server.URL()}, io.Discard, &log); code != exit.Usage ||
		strings.Contains(log.String(), "no-key-at-all") {
		t.Errorf("invalid keys: exit code %d, %s", code, log.String())
	}
}

// TestNoPasswordOfRedisIsEverLogged runs the platform with its debug log, on stores that accept, refuse, or are down.
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
			var log sidecartest.Buffer
			ended := make(chan int)
			go func() {
				ended <- run(ctx, []string{"--listen", "127.0.0.1:0", "--redis-url", row.url, "--ready-file", file, "--log-format",
					"json", "--log-level", "debug"}, io.Discard, &log)
			}()
			redistest.Await(t, "the platform to listen", func() bool {
				_, err := os.Stat(file)
				return err == nil
			})
			at := readReady(t, file)
			response, err := http.Get(strings.TrimSuffix(at.APIRoot, "/api") + "/healthz")
			must(t, err)
			must(t, response.Body.Close())
			http.DefaultClient.CloseIdleConnections()
			stop()
			if code := <-ended; code != exit.OK {
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
