package redisconn_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

func TestWorksOverTLSWithAClientCertificate(t *testing.T) {
	ca, stranger := redistest.NewAuthority(t), redistest.NewAuthority(t)
	ca.Issue(t, "client", x509.ExtKeyUsageClientAuth)
	stranger.Issue(t, "client", x509.ExtKeyUsageClientAuth)
	url := redistest.StartTLS(t, ca)

	good := redisconn.Config{URL: url, CAFile: ca.File("ca.crt"), CertFile: ca.File("client.crt"),
		KeyFile: ca.File("client.key")}
	client, err := redisconn.Open(good)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if err := client.Set(t.Context(), "a", "b", time.Second).Err(); err != nil {
		t.Fatal(err)
	}

	for name, row := range map[string]struct {
		change func(*redisconn.Config)
		want   string
	}{
		"another CA": {func(c *redisconn.Config) { c.CAFile = stranger.File("ca.crt") },
			"certificate that is not trusted; check the CA file"},
		"the system's roots": {func(c *redisconn.Config) { c.CAFile = "" },
			"certificate that is not trusted; check the CA file"},
		"another name": {func(c *redisconn.Config) { c.URL = strings.Replace(url, "127.0.0.1", "localhost", 1) },
			"certificate that is not trusted; check the CA file and the host name"},
		"no client certificate": {func(c *redisconn.Config) { c.CertFile, c.KeyFile = "", "" },
			"refused our client certificate"},
		"a stranger's": {func(c *redisconn.Config) {
			c.CertFile, c.KeyFile = stranger.File("client.crt"), stranger.File("client.key")
		}, "refused our client certificate"},
		"no TLS": {func(c *redisconn.Config) { *c = redisconn.Config{URL: strings.Replace(url, "rediss", "redis", 1)} },
			"wants TLS (rediss://)"},
	} {
		t.Run(name, func(t *testing.T) {
			config := good
			row.change(&config)
			client, err := redisconn.Open(config)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			if err := client.Set(t.Context(), "a", "b", time.Second).Err(); err == nil ||
				!strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q in it", err, row.want)
			}
		})
	}
}

func TestInvalidTLSFilesAreNamed(t *testing.T) {
	ca := redistest.NewAuthority(t)
	for name, row := range map[string]struct {
		config redisconn.Config
		want   string
	}{
		"no CA file": {redisconn.Config{URL: "rediss://h", CAFile: ca.File("none")}, "none"},
		"CA is no certificate": {redisconn.Config{URL: "rediss://h", CAFile: ca.File("ca.key")},
			"contains no PEM certificate"},
		"certificate, no key": {redisconn.Config{URL: "rediss://h", CertFile: ca.File("ca.crt")}, "client certificate"},
		"files without TLS": {redisconn.Config{URL: "redis://h", CAFile: ca.File("ca.crt")},
			"write rediss:// for redis://"},
	} {
		if _, err := redisconn.Open(row.config); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q in it", name, err, row.want)
		}
	}
}
