package proxy

import "testing"

// TestIdentityFieldsAreDropped uses the names of gateways, of CGI and of HTTP/2, and names with a user in them that
// pass.
func TestIdentityFieldsAreDropped(t *testing.T) {
	for _, name := range []string{
		"X-Authenticated-User", "X-Authenticated-Userid", "X-Consumer-Id", "X-Anonymous-Consumer", "X-Credential-Identifier",
		"X-WEBAUTH-USER",
		"X-MS-CLIENT-PRINCIPAL", "X-MS-CLIENT-PRINCIPAL-ID", "X-Goog-Authenticated-User-Email", "X-Goog-IAP-JWT-Assertion",
		"X-Amzn-Oidc-Identity", "X_Amzn_Oidc_Data", "X-Ssl-Client-Cert", "Ssl-Client-Verify", "SSL_CLIENT_S_DN",
		"X-Client-Cert", "X-Userinfo",
		"Impersonate-User", "X-On-Behalf-Of", "REMOTE_ADDR", "Remote-User", "SERVER_NAME", "HTTPS", "AUTH_TYPE",
		"X-Override-URL", "X-Proxy-URL",
		"X-Request-Method", "Method", "Path", "Uri",
	} {
		if got := requestAction([]byte(name)); got != drop {
			t.Errorf("%s: %v", name, got)
		}
	}
	for _, name := range []string{"X-User", "X-Request-Id", "Request-Id", "Server-Timing", "X-Correlation-Id",
		"Content-Type", "X-Certainty", "Idempotency-Key"} {
		if got := requestAction([]byte(name)); got != pass {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAMethodInAMultipartBodyIsFoundInEverySpellingOfItsName(t *testing.T) {
	for name, found := range map[string]bool{
		`name="_method"`: true, `name="_met\hod"`: true, `name*=utf-8''%5fmethod`: true, `filename*=utf-8''x`: false,
		`name="method"`: false,
	} {
		scanner := &nameScanner{multipart: true}
		if got := scanner.finds([]byte("--b\r\nContent-Disposition: form-data; " + name + "\r\n\r\nDELETE\r\n--b--\r\n")); got != found {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAuditContainsNoTerminalControls(t *testing.T) {
	audit := &memoryAudit{}
	j := newJournal(&Config{Audit: audit, ExecutionID: "e1"})
	if err := j.write(Call{Path: "/x\u202e\u009b"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range audit.String() {
		if c == '\u202e' || c == '\u009b' {
			t.Errorf("%q", audit.String())
		}
	}
}
