package attacks

import "net/http"

// Page is a request that a page of another site makes an operator's browser send in order to run code.
type Page struct {
	Name   string
	Header http.Header // including Host
	Status int         // of the response
}

// Pages returns all such requests.
func Pages() []Page {
	return []Page{
		{"a rebound name", http.Header{"Host": {"attacker.example"}}, 421},
		{"a rebound number", http.Header{"Host": {"0x7f000001:80"}}, 421},
		{"another origin", http.Header{"Origin": {"https://attacker.example"}}, 403},
		{"no origin", http.Header{"Origin": {"null"}}, 403},
		{"another port", http.Header{"Origin": {"http://127.0.0.1:1"}}, 403},
		{"another site", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
		{"a sibling", http.Header{"Sec-Fetch-Site": {"same-site"}}, 403},
		{"plain text", http.Header{"Content-Type": {"text/plain"}}, 415},
		{"a form", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, 415},
		{"no type", http.Header{"Content-Type": {""}}, 415},
		{"another charset", http.Header{"Content-Type": {"application/json; charset=utf-16"}}, 415},
		{"two types", http.Header{"Content-Type": {"text/plain, application/json"}}, 415},
	}
}

// Hosts returns values of a Host field that do not name a server of ours: rebound names, and addresses in spellings
// that only browsers resolve.
func Hosts() []string { return hosts }

var hosts = []string{
	"attacker.example", "0x7f000001:80", "2130706433", "127.1", "", "localhost.attacker.example",
	"127.0.0.1.attacker.example:8378", "localhost.",
	"evil\x1b[31m.example",
}
