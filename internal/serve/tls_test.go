package serve

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
)

func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	ca := redistest.NewAuthority(t)
	ca.Issue(t, "server", x509.ExtKeyUsageServerAuth)
	cert, key, authority := ca.File("server.crt"), ca.File("server.key"), ca.File("ca.crt")
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := TLSFiles{Cert: cert, Key: key, ClientCA: authority}.Config()
	if err != nil || config.ClientAuth != tls.VerifyClientCertIfGiven || config.MinVersion != tls.VersionTLS12 {
		t.Fatalf("%+v, %v", config, err)
	}
	config.Certificates[0].Leaf.DNSNames = []string{"sidecar.example"}
	if names := CertifiedNames(config); !slices.Equal(names, []string{"sidecar.example"}) {
		t.Errorf("names %q", names)
	}
	if config, err = (TLSFiles{}).Config(); config != nil || err != nil || CertifiedNames(config) != nil {
		t.Errorf("without files: %+v, %v", config, err)
	}
	for want, files := range map[string]TLSFiles{
		"--client-ca needs --tls-cert and --tls-key":  {ClientCA: authority},
		"cannot use --tls-cert and --tls-key":         {Cert: cert},
		`no such client CA "`:                         {Cert: cert, Key: key, ClientCA: filepath.Join(dir, "none")},
		`empty" contains no PEM certificate`:          {Cert: cert, Key: key, ClientCA: empty},
		"cannot use --tls-cert and --tls-key: open /": {Cert: filepath.Join(dir, "none"), Key: key},
	} {
		if _, err := files.Config(); exit.Code(err) != exit.Usage || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", files, err, want)
		}
	}
}
