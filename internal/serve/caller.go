package serve

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/ids"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
)

// The headers in which a trusted caller names the business and the user of a step.
const (
	headerBusiness = "X-BUSINESS-ID"
	headerUser     = "X-USER-ID"
)

// MinTokenBytes is the minimal length of a caller's token.
const MinTokenBytes = 16

// Caller is a client that may run steps.
type Caller struct {
	Name string `yaml:"name"`
	// TokenFile contains the caller's bearer token (RFC 6750). Certificate is the subject alternative name (URI or
	// DNS), or the common name, of its client certificate. Exactly one of both is set.
	TokenFile   string `yaml:"token_file"`
	Certificate string `yaml:"certificate"`
	// BusinessID and UserID are those for which the caller's steps act. A Trusted caller instead names them in each
	// request, for any business.
	BusinessID  string `yaml:"business_id"`
	UserID      string `yaml:"user_id"`
	AccountType string `yaml:"account_type"`
	Trusted     bool   `yaml:"trusted"`

	token [sha256.Size]byte
}

// Callers authenticates callers. The zero value refuses every request.
type Callers struct {
	list []Caller
	// anonymous, if not nil, is the caller of every request.
	anonymous *Caller
}

// AnonymousCallers accepts every request as that of a trusted caller. Requests that name no business act for defaults.
func AnonymousCallers(defaults minter.Identity) *Callers {
	caller := localCaller(defaults)
	return &Callers{anonymous: &caller}
}

// LocalCallers accepts requests with token as those of a trusted caller. Requests that name no business act for
// defaults.
func LocalCallers(token runner.Secret, defaults minter.Identity) *Callers {
	caller := localCaller(defaults)
	caller.TokenFile, caller.token = "the local token", sha256.Sum256([]byte(token.Reveal()))
	return &Callers{list: []Caller{caller}}
}

func localCaller(defaults minter.Identity) Caller {
	return Caller{
		Name: "local", Trusted: true,
		BusinessID: defaults.BusinessID, UserID: defaults.AccountID, AccountType: defaults.AccountType,
	}
}

// LoadCallers reads a YAML list of callers and the files of their tokens. It reports all errors.
func LoadCallers(data []byte) (*Callers, error) {
	var list []Caller
	if err := yaml.UnmarshalWithOptions(data, &list, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("is not a list of callers: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("names no caller")
	}
	var errs []error
	known := map[string]string{}
	for i := range list {
		err := list[i].load()
		if err == nil {
			err = list[i].unlike(known)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("caller %d %q: %w", i+1, list[i].Name, err))
		}
	}
	return &Callers{list: list}, errors.Join(errs...)
}

// load checks a caller and reads its token.
func (c *Caller) load() error {
	if c.AccountType == "" {
		c.AccountType = "service_automation"
	}
	switch {
	case c.Name == "":
		return errors.New("has no name")
	case (c.TokenFile == "") == (c.Certificate == ""):
		return errors.New("give either token_file or certificate")
	case c.Trusted && (c.BusinessID != "" || c.UserID != ""):
		return errors.New("a trusted caller names business and user in each request; leave business_id and user_id out")
	case !c.Trusted && (!ids.Valid(c.BusinessID) || !ids.Valid(c.UserID)):
		return errors.New("give business_id and user_id, or trusted: true")
	}
	if c.TokenFile == "" {
		return nil
	}
	text, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return err
	}
	token := strings.TrimSpace(string(text))
	if len(token) < MinTokenBytes {
		return fmt.Errorf("the token in %q is shorter than %d bytes", c.TokenFile, MinTokenBytes)
	}
	c.token = sha256.Sum256([]byte(token))
	return nil
}

// unlike rejects a caller whose credential equals that of an earlier caller; known contains the callers' names by
// credential.
func (c *Caller) unlike(known map[string]string) error {
	what, shown := "certificate", c.Certificate
	if c.TokenFile != "" {
		what, shown = "token", string(c.token[:])
	}
	if other, taken := known[what+shown]; taken {
		return fmt.Errorf("has the same %s as caller %q; each caller needs a different one", what, other)
	}
	known[what+shown] = c.Name
	return nil
}

// errUnknownCaller is the only error for unknown callers, so that it reveals nothing.
var errUnknownCaller = errors.New("unknown caller; show a bearer token or a client certificate that this sidecar knows")

// identify returns the caller of a request. It compares every token, in constant time.
func (c *Callers) identify(r *http.Request) (*Caller, error) {
	if c.anonymous != nil {
		return c.anonymous, nil
	}
	scheme, shown, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	hasToken := strings.EqualFold(scheme, "Bearer") // in any case: RFC 9110, section 11.1
	digest := sha256.Sum256([]byte(shown))
	var found *Caller
	for i := range c.list {
		caller := &c.list[i]
		switch {
		case caller.TokenFile != "":
			if subtle.ConstantTimeCompare(digest[:], caller.token[:]) == 1 && hasToken {
				found = caller
			}
		case r.TLS != nil && len(r.TLS.VerifiedChains) > 0 && names(r.TLS.VerifiedChains[0][0], caller.Certificate):
			found = caller
		}
	}
	if found == nil {
		return nil, errUnknownCaller
	}
	return found, nil
}

// names reports whether a verified certificate has this name.
func names(certificate *x509.Certificate, name string) bool {
	for _, uri := range certificate.URIs {
		if uri.String() == name {
			return true
		}
	}
	for _, dns := range certificate.DNSNames {
		if dns == name {
			return true
		}
	}
	return certificate.Subject.CommonName == name && name != ""
}

// forbiddenError reports that a known caller may not act for the business or user of its request.
type forbiddenError struct{ reason string }

func (e forbiddenError) Error() string { return e.reason }

// identity returns the identity for which a caller's request acts. A trusted caller names it in headers or body. For
// any other caller, headers and body must match its own identity.
func (c *Caller) identity(header http.Header, body execution.Body) (minter.Identity, error) {
	id := minter.Identity{BusinessID: c.BusinessID, AccountID: c.UserID, AccountType: c.AccountType,
		ExecutionID: body.ExecutionID}
	for _, field := range []struct {
		name    string
		headers []string
		body    string
		into    *string
	}{
		{"business", header.Values(headerBusiness), body.BusinessID, &id.BusinessID},
		{"user", header.Values(headerUser), body.UserID, &id.AccountID},
		{"account type", nil, body.AccountType, &id.AccountType},
	} {
		named := field.body
		for _, value := range field.headers {
			if named != "" && value != "" && named != value {
				return id, forbiddenError{fmt.Sprintf("the request names more than one %s, in its headers or its body", field.name)}
			}
			named = cmp.Or(named, value)
		}
		if named == "" || named == *field.into {
			continue
		}
		if !c.Trusted {
			return id, forbiddenError{fmt.Sprintf("caller %q may not act for this %s", c.Name, field.name)}
		}
		*field.into = named
	}
	return id, nil
}
