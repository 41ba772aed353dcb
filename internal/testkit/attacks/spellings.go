package attacks

import (
	"fmt"
	"strings"
)

// Spelling is one way to write a guarded call: a call that creates or deletes an API key, or imports the business
// config.
type Spelling struct {
	Method, Path string
	Header       string // "Name: value"
	Body         string // of the type in Header
	// Passes means that without Header the call is not guarded. The proxy drops the header and forwards the call.
	Passes bool
}

// Text returns the request for a server with this host and base path.
func (s Spelling) Text(host, base string) string {
	head := fmt.Sprintf("%s %s%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: %d\r\n", s.Method, base,
		s.Path, host, len(s.Body))
	if s.Header != "" {
		head += s.Header + "\r\n"
	}
	return head + "\r\n" + s.Body
}

// Reading is a path, and the servers that resolve it to a guarded call.
type Reading struct{ Path, By string }

// Readings returns the paths for which such servers are known.
func Readings() []Reading { return knownReadings }

var knownReadings = []Reading{
	{"/api-keys.json", "Django REST framework, Rails: a format suffix"},
	{"/API-Keys.Json/", "the same in any case, with a slash"},
	{"/team/1/api-keys.json", "the same below another segment"},
	{"/business-config/import.json", "the same"},
	{"/team/a%2fb/api-keys", "Express: a parameter is decoded after matching"},
	{"/team/a%252fb/api-keys", "the same behind a server that decodes once"},
	{"/team/a%5cb/api-keys", "the same"},
	{"/team/;x/api-keys", "Express, Django: a semicolon is a character"},
	{"/team/%20/api-keys", "Express, Django: so is a blank"},
	{"/team/./api-keys", "Express: so is a dot"},
	{"/team/%2e/api-keys", "Express"},
	{"/team/1;v=2/api-keys;w.json", "servers with path parameters"},
	{"/team%2f1%2fapi-keys", "gin, Django: the path is decoded before matching"},
	{"/team%252f1%252fapi-keys", "a server that decodes twice"},
	{"/team%5c1\\api-keys", "servers on file systems that separate by backslashes"},
	{"/api-keys%0a", "Django: $ matches before a line break at the end"},
	{"/team/1%0a2/api-keys%0d%0a", "the same below a segment with a line break"},
	{"/api-keys%0ax/y", "Rails: $ matches at the end of each line"},
	{"/api%0d-k%09eys", "servers behind a WHATWG URL parser, which drops both"},
	{"/api-keys;v=1%3fx/y", "a server that looks for the query, then for path parameters"},
	{"/api-keys%20%3fx/y", "a server that looks for the query, then trims"},
	{"/team//1//./api-keys", "nginx, gin: slashes are merged, dots resolved"},
	{"/team/1/api-keys%20", "servers that trim"},
	{"/api-keys#x/y", "gunicorn: a fragment is cut off"},
	{"/api-keys%23/x/y", "the same behind a server that decodes once"},
	{"/api-keys%3fx/y", "a server that decodes before it looks for the query"},
	{"/api-keys.", "servers on file systems that drop a dot at the end"},
	{"/.;x//api-keys.json;y/%2e/", "all of it"},
	{"/%5c;x%0a/api-k%09eys.json;y%5C%0d.", "all of it"},
	{"/business-config%2f.%2fimport.json/", "all of it"},
	{"/business-config/import/1", "nginx, Express: a location or a mounted application gets every path below it"},
	{"/business-config/import/1/apply", "the same"},
	{"/business-config%2fimport/;x/%20", "the same behind a server that decodes first"},
	{"/team/1/api-keys/2", "the same"},
	{"/team/1/api-keys/2/rotate.json", "the same"},
}

// GuardedPaths returns all spellings of guarded paths.
func GuardedPaths() []string {
	paths := otherPaths[:len(otherPaths):len(otherPaths)]
	for _, reading := range knownReadings {
		paths = append(paths, reading.Path)
	}
	return paths
}

var otherPaths = []string{
	"/api-keys", "/api-keys/", "/api-keys.json/", "/API-KEYS", "/api-keys.JSON", "/%61pi-keys",
	"/api-key%c5%bf", "/api-%E2%84%AAeys", "/api-keys%2e%2e", "/api-keys...", "/api-keys/1/rotate", "/api%2dkeys.json",
	"/x//../api-keys", "/./api-keys", "/%2e/api-keys", "/api-keys%20", "/api-keys;v=1", "/api-keys%23x", "/api-keys%3fx",
	"/team/1/api-keys", "/team//1//api-keys", "/team/1;x/api-keys", "/team/1/%61pi-keys", "/team/%E2%82%AC/api-keys.json",
	"/team/a.b/api-keys", "/team/%00/api-keys", "/team/%0a/api-keys", "/api-keys%0d%0a", "/api-keys/%0a", "/api%0d-keys",
	"/%09api-keys", "/%0a/api-keys", "/api-keys.json%0a", "/team/1%0a2/api-keys%0a", "/%5capi-keys", "/team\\1\\api-keys",
	"/team%5c1%5capi-keys", "/team/1%0a/%5capi-keys", "/business-config/import", "/business-config//import",
	"/business-config%2fimport", "/business-config/./import", "//api-keys", "/API-Keys", "/api%2Dkeys", "/%2561pi-keys",
	"/;x/api-keys", "/api-keys?a=b", "/api-keys//", "/x/../api-keys", "/api-keys/%2e%2e/api-keys", "/api-keys%2f",
	"/api-keys%00", "/api-keys%0A", "/api-keys%0D%0A", "\\api-keys", "/%5Capi-keys", "/%5c%0aapi-keys%255C",
	"/x/%0a../api-keys", "/x%5c..%5capi-keys", "/x/.%0d./api-keys", "/team\\x%5capi-keys", "/api-keys/.",
	"/%25252561pi-keys",
	"/api-keys%3b", "/%74eam/%zz/api-keys", "/api-keys%3Fa", "/x/%2e%2e/api-keys", "/team/x/api-keys", "/api%0D-keys",
	"/team%5Cx%5Capi-keys", "/team/x\\api-keys", "/team%5Cx%0A%5C/api-keys",
}

// FreePaths returns paths that look like guarded ones but are not: a step may POST to them.
func FreePaths() []string { return freePaths }

var freePaths = []string{
	"/api-keys-report", "/api-keys.d/x", "/my-api-keys", "/team/1/x/api-keys", "/business-config/imports/1",
	"/team/1/api-keys.json/x", "/records/api-keys.json",
	"/api/keys", "/api-keys-x.json", "/team/%20/x", "/team%0a/x", "/business-config/important", "/business-config.import", "/a%2fapi-keys", "/;api-keys/x",
}

// Names returns spellings of an account's ID in a path.
func Names(id string) []string {
	return []string{
		id, strings.ToUpper(id), id + ";v=1", id + "%3bv=1", "./" + id, id + "%20", id + "%0a", id[:4] + "%09" + id[4:],
		"%5c" + id, "%" + fmt.Sprintf("%x", id[0]) + id[1:],
	}
}

// Spellings returns all spellings. On some routers, some of them are not the guarded call.
func Spellings() []Spelling {
	var all []Spelling
	for _, path := range GuardedPaths() {
		for _, method := range []string{"POST", "PUT"} {
			all = append(all, Spelling{Method: method, Path: path})
		}
	}
	for _, header := range []string{
		"SCRIPT_NAME: /api/records", "Script-Name: /api/records", "script_name: /api/records", "X-Script-Name: /api/records",
		"PATH_INFO: /api/api-keys",
		"X-Original-URL: /api/api-keys", "X-Rewrite-URL: /api/api-keys", "X-Original-URI: /api/api-keys",
		"X-Envoy-Original-Path: /api/api-keys",
		"X-Forwarded-Prefix: /api/records", "X-Forwarded-Path: /api/api-keys", "REQUEST_URI: /api/api-keys",
		"Request-URI: /api/api-keys",
	} {
		all = append(all, Spelling{Method: "POST", Path: "/records/api/api-keys", Header: header, Passes: true})
	}
	for _, header := range []string{"X-HTTP-Method-Override: POST", "X_HTTP_Method_Override: post",
		"X-Method-Override: POST", "X-HTTP-Method: POST"} {
		all = append(all, Spelling{Method: "GET", Path: "/api-keys", Header: header})
	}
	for _, parameter := range []string{"_method=POST", "%5Fmethod=post", "_METHOD=POST", "a=b&_method=POST",
		"x-http-method-override=POST"} {
		all = append(all, Spelling{Method: "GET", Path: "/api-keys?" + parameter})
	}
	for content, bodies := range map[string][]string{
		"application/x-www-form-urlencoded": {"_method=DELETE", "a=b&%5fmethod=DELETE",
			"a=" + strings.Repeat("x", 200_000) + "&_method=DELETE"},
		"application/json": {`{"_method": "DELETE"}`, `{"\u005fmethod": "DELETE"}`},
	} {
		for _, body := range bodies {
			all = append(all, Spelling{Method: "POST", Path: "/api-keys/1", Header: "Content-Type: " + content, Body: body})
		}
	}
	return all
}
