package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Authority is a certificate authority. Its certificates are valid for an hour.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority creates an authority, with its own certificate in ca.crt.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{dir: t.TempDir()}
	a.cert, a.key = a.write(t, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign})
	return a
}

// File returns the path of a file that the authority has written.
func (a *Authority) File(name string) string { return filepath.Join(a.dir, name) }

// Issue writes NAME.crt and NAME.key, for a client or for a server on loopback.
func (a *Authority) Issue(t testing.TB, name string, usage x509.ExtKeyUsage) {
	t.Helper()
	a.write(t, name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{usage},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
}

// write signs with the authority's key, or with the new key when the authority creates its own certificate.
func (a *Authority) write(t testing.TB, name string,
	template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(a.File(file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// StartTLS starts a redis-server that accepts only TLS, from clients with a certificate of the authority, and returns
// its URL.
func StartTLS(t testing.TB, ca *Authority) (url string) {
	t.Helper()
	ca.Issue(t, "server", x509.ExtKeyUsageServerAuth)
	port := strconv.Itoa(FreePort(t))
	StartAt(t, 0, "--tls-port", port, "--tls-auth-clients", "yes",
		"--tls-cert-file", ca.File("server.crt"), "--tls-key-file", ca.File("server.key"), "--tls-ca-cert-file",
		ca.File("ca.crt"))
	return "rediss://127.0.0.1:" + port
}
