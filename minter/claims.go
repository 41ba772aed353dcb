package minter

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/golang-jwt/jwt/v5"

	"github.com/kizen/kizen-sidecar/internal/ids"
)

// claims is the payload of a signed key: the registered claims of RFC 7519 section 4.1, all of them required, and the
// identity that the key acts for.
type claims struct {
	Issuer      string `json:"iss"`
	Subject     string `json:"sub"`
	Audience    string `json:"aud"`
	ExpiresAt   int64  `json:"exp"` // seconds since the epoch, like the next two
	NotBefore   int64  `json:"nbf"`
	IssuedAt    int64  `json:"iat"`
	ID          string `json:"jti"`
	BusinessID  string `json:"business_id"`
	ExecutionID string `json:"execution_id"`
	AccountType string `json:"account_type"`
}

func newClaims(key Key, issuer, audience string) *claims {
	return &claims{
		Issuer:   issuer,
		Subject:  key.Identity.AccountID,
		Audience: audience,
		// rounded up: the record decides the expiry, in milliseconds
		ExpiresAt: key.ExpiresAt.Add(time.Second - 1).Unix(),
		// Backdated: the verifier's clock may be behind, and many libraries refuse a nbf or an iat in the future.
		NotBefore:   key.IssuedAt.Add(-DefaultLeeway).Unix(),
		IssuedAt:    key.IssuedAt.Add(-DefaultLeeway).Unix(),
		ID:          key.ID,
		BusinessID:  key.Identity.BusinessID,
		ExecutionID: key.Identity.ExecutionID,
		AccountType: key.Identity.AccountType,
	}
}

func (c *claims) identity() Identity {
	return Identity{AccountID: c.Subject, AccountType: c.AccountType, BusinessID: c.BusinessID, ExecutionID: c.ExecutionID}
}

// UnmarshalJSON reads a payload strictly: names match by case, and a repeated name is an error, whereas encoding/json
// would silently take the last one.
func (c *claims) UnmarshalJSON(data []byte) error {
	type plain claims
	return json.Unmarshal(data, (*plain)(c))
}

// Validate is called by the jwt library after its own checks of time, issuer and audience.
func (c *claims) Validate() error {
	if err := c.identity().validate(); err != nil {
		return err
	}
	return ids.Check("jti", c.ID)
}

// The six methods below are jwt.Claims.

func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) { return numericDate(c.ExpiresAt), nil }
func (c *claims) GetNotBefore() (*jwt.NumericDate, error)      { return numericDate(c.NotBefore), nil }
func (c *claims) GetIssuedAt() (*jwt.NumericDate, error)       { return numericDate(c.IssuedAt), nil }
func (c *claims) GetAudience() (jwt.ClaimStrings, error)       { return jwt.ClaimStrings{c.Audience}, nil }
func (c *claims) GetIssuer() (string, error)                   { return c.Issuer, nil }
func (c *claims) GetSubject() (string, error)                  { return c.Subject, nil }

// numericDate returns nil for an absent claim, which the jwt library then reports as missing.
func numericDate(seconds int64) *jwt.NumericDate {
	if seconds == 0 {
		return nil
	}
	return jwt.NewNumericDate(time.Unix(seconds, 0))
}

func sign(c *claims, key signingKey) (Token, error) {
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	token.Header["kid"] = key.id
	value, err := token.SignedString(key.private)
	if err != nil {
		return Token{}, fmt.Errorf("sign with key %q: %w", key.id, err)
	}
	return NewToken(value), nil
}

// header lists the only members that a signed key's JOSE header may have (RFC 7515 section 4). Members that refer to a
// key of the sender's choice (jwk, jku, x5c, x5u) and extensions in crit are refused.
type header struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`
}

// parseHeader reads a token's header strictly. The jwt library parses it again, but would silently keep the last of two
// members with the same name.
func parseHeader(token string) (header, error) {
	encoded, _, _ := strings.Cut(token, ".")
	data, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return header{}, errHeader
	}
	var h header
	if err := json.Unmarshal(data, &h, json.RejectUnknownMembers(true)); err != nil {
		return header{}, errHeader
	}
	if h.Algorithm != jwt.SigningMethodEdDSA.Alg() {
		return header{}, errAlgorithm
	}
	return h, nil
}

var (
	errHeader    = errors.New("the header has members other than alg, kid and typ")
	errAlgorithm = errors.New("the algorithm is not EdDSA")
)
