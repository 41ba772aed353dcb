package serve

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
)

// TLSFiles are the PEM files that the API uses for TLS.
type TLSFiles struct {
	Cert, Key string
	// ClientCA, if not empty, verifies the certificates of callers.
	ClientCA string
}

// Config returns the TLS configuration, or nil without files.
func (f TLSFiles) Config() (*tls.Config, error) {
	if f.Cert == "" && f.Key == "" {
		if f.ClientCA != "" {
			return nil, exit.Usagef("--client-ca needs --tls-cert and --tls-key")
		}
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, exit.Usagef("cannot use --tls-cert and --tls-key: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair},
		NextProtos: []string{"h2", "http/1.1"}}
	if f.ClientCA == "" {
		return config, nil
	}
	pem, err := wholefile.Read("client CA", f.ClientCA)
	if err != nil {
		return nil, exit.WrongUsage(err)
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, exit.Usagef("client CA %q contains no PEM certificate", f.ClientCA)
	}
	// A caller may send a token instead. The API itself refuses callers without either.
	config.ClientAuth = tls.VerifyClientCertIfGiven
	return config, nil
}

// CertifiedNames returns the DNS names in the certificate of a configuration, or none if it is nil.
func CertifiedNames(config *tls.Config) []string {
	if config == nil {
		return nil
	}
	return config.Certificates[0].Leaf.DNSNames // LoadX509KeyPair sets Leaf
}
