package attacks

import "strings"

// Spelling is one way to ask for a guarded call: one that creates or deletes an API key, or imports the business config.
type Spelling struct {
	Method, Path string
	Header       string // "Name: value"
	Body         string // of the type that Header names
}

// Spellings are tried on every router. Not every one of them is the guarded call on each.
func Spellings() []Spelling {
	var all []Spelling
	for _, path := range []string{
		"/api-keys", "/api-keys/", "/api-keys.json", "/api-keys.json/", "/API-KEYS", "/api-keys.JSON", "/%61pi-keys", "/api%2dkeys.json",
		"/x//../api-keys", "/./api-keys", "/%2e/api-keys", "/api-keys%20", "/api-keys;v=1", "/api-keys#x/y", "/api-keys%23x", "/api-keys%3fx",
		"/team/1/api-keys", "/team/1/api-keys.json", "/team/a%2fb/api-keys", "/team/a%252fb/api-keys", "/team/a%5cb/api-keys", "/team/;x/api-keys",
		"/team/%20/api-keys", "/team/./api-keys", "/team/%2e/api-keys", "/team%2f1%2fapi-keys", "/team//1//api-keys", "/team/1;x/api-keys",
		"/team/1/%61pi-keys", "/team/%E2%82%AC/api-keys.json", "/team/a.b/api-keys", "/team/%00/api-keys", "/team/%0a/api-keys",
		"/api-keys%0a", "/api-keys%0d%0a", "/api-keys/%0a", "/api%0d-keys", "/%09api-keys", "/%0a/api-keys", "/api-keys.json%0a", "/team/1%0a2/api-keys%0a",
		"/%5capi-keys", `/team\1\api-keys`, "/team%5c1%5capi-keys", "/team/1%0a/%5capi-keys",
		"/business-config/import", "/business-config/import.json", "/business-config//import", "/business-config%2fimport", "/business-config/./import",
	} {
		for _, method := range []string{"POST", "PUT"} {
			all = append(all, Spelling{Method: method, Path: path})
		}
	}
	for _, header := range []string{
		"SCRIPT_NAME: /api/records", "Script-Name: /api/records", "script_name: /api/records", "X-Script-Name: /api/records", "PATH_INFO: /api/api-keys",
		"X-Original-URL: /api/api-keys", "X-Rewrite-URL: /api/api-keys", "X-Original-URI: /api/api-keys", "X-Envoy-Original-Path: /api/api-keys",
		"X-Forwarded-Prefix: /api/records", "X-Forwarded-Path: /api/api-keys", "REQUEST_URI: /api/api-keys", "Request-URI: /api/api-keys",
	} {
		all = append(all, Spelling{"POST", "/records/api/api-keys", header, ""})
	}
	for _, header := range []string{"X-HTTP-Method-Override: POST", "X_HTTP_Method_Override: post", "X-Method-Override: POST", "X-HTTP-Method: POST"} {
		all = append(all, Spelling{"GET", "/api-keys", header, ""})
	}
	for content, bodies := range map[string][]string{
		"application/x-www-form-urlencoded": {"_method=DELETE", "a=b&%5fmethod=DELETE", "a=" + strings.Repeat("x", 200_000) + "&_method=DELETE"},
		"application/json":                  {`{"_method": "DELETE"}`, `{"\u005fmethod": "DELETE"}`},
	} {
		for _, body := range bodies {
			all = append(all, Spelling{"POST", "/api-keys/1", "Content-Type: " + content, body})
		}
	}
	return all
}
