package minter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// The headers of a request to the API, and of the response of [VerifyHandler].
const (
	HeaderKey      = "X-API-KEY"
	HeaderBusiness = "X-BUSINESS-ID"
	HeaderUser     = "X-USER-ID"

	HeaderAccount          = "X-Kizen-Account"
	HeaderAccountType      = "X-Kizen-Account-Type"
	HeaderVerifiedBusiness = "X-Kizen-Business"
	HeaderExecution        = "X-Kizen-Execution"
)

// jwksMaxAge is how long a JWK set may be cached, in seconds. A key should be in the set for that long before it signs.
const jwksMaxAge = "300"

// JWKSHandler serves the public keys of a set, for /.well-known/jwks.json (RFC 7517 section 8.5.2), with cache headers.
func JWKSHandler(keys *KeySet) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		body, err := keys.JWKS()
		if err != nil {
			http.Error(w, "the keys cannot be written", http.StatusInternalServerError)
			return
		}
		sum := sha256.Sum256(body)
		header := w.Header()
		header.Set("Content-Type", "application/jwk-set+json")
		header.Set("Cache-Control", "public, max-age="+jwksMaxAge)
		header.Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	})
}

// VerifyRequest verifies a request to the API by its three headers, each of which must be present exactly once. Errors
// are those of [Verifier.Verify].
func (v *Verifier) VerifyRequest(ctx context.Context, header http.Header) (Identity, error) {
	var sent [3]string
	for i, name := range []string{HeaderKey, HeaderBusiness, HeaderUser} {
		switch values := header.Values(name); len(values) {
		case 0:
			return Identity{}, denied(CodeMissing, "the header "+name+" is missing", nil)
		case 1:
			sent[i] = values[0]
		default:
			return Identity{}, denied(CodeMalformed, "the header "+name+" was sent more than once", nil)
		}
	}
	return v.Verify(ctx, sent[0], sent[1], sent[2])
}

// VerifyHandler answers as nginx's auth_request and Envoy's ext_authz over HTTP expect it, whatever the method and the
// path: 200 with the identity in headers; 401 with {"error": code, "reason": text}; 503 if Redis cannot be reached,
// which both treat as a refusal. If failed is not nil, VerifyHandler calls it with the error behind a 503.
func VerifyHandler(verifier *Verifier, failed func(context.Context, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Cache-Control", "no-store")
		id, err := verifier.VerifyRequest(r.Context(), r.Header)
		var refusal *DeniedError
		switch {
		case err == nil:
			header.Set(HeaderAccount, id.AccountID)
			header.Set(HeaderAccountType, id.AccountType)
			header.Set(HeaderVerifiedBusiness, id.BusinessID)
			// empty for a stored key, but set, to replace the caller's value
			header.Set(HeaderExecution, id.ExecutionID)
			w.WriteHeader(http.StatusOK)
		case errors.As(err, &refusal):
			header.Set("WWW-Authenticate", Challenge(refusal))
			refuse(w, http.StatusUnauthorized, refusal.Code, refusal.Reason)
		default:
			if failed != nil {
				failed(r.Context(), err)
			}
			refuse(w, http.StatusServiceUnavailable, "unavailable", "the key cannot be checked now")
		}
	})
}

// Challenge returns the WWW-Authenticate header of a 401 (RFC 9110 section 11.6.1). Its error is the refusal's code. A
// sidecar mints a new key if the code is [CodeUnknownKey] or the key's record was lost.
func Challenge(refusal *DeniedError) string {
	challenge := `ApiKey header="` + HeaderKey + `", error="` + refusal.Code + `"`
	if refusal.Lost {
		challenge += `, record="lost"`
	}
	return challenge
}

func refuse(w http.ResponseWriter, status int, code, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "reason": reason})
}
