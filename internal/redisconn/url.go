package redisconn

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// target is a parsed URL.
type target struct {
	name    string // for messages, without a password
	tls     bool
	options *redis.UniversalOptions
	open    func(*redis.UniversalOptions) redis.UniversalClient
}

// redisModes maps the part after the + of a scheme to its mode.
var redisModes = map[string]struct {
	port string
	open func(*redis.UniversalOptions) redis.UniversalClient
}{
	"": {"6379", func(o *redis.UniversalOptions) redis.UniversalClient { return redis.NewClient(o.Simple()) }},
	"sentinel": {"26379",
		func(o *redis.UniversalOptions) redis.UniversalClient { return redis.NewFailoverClient(o.Failover()) }},
	"cluster": {"6379",
		func(o *redis.UniversalOptions) redis.UniversalClient { return redis.NewClusterClient(o.Cluster()) }},
}

// parseRedisURL parses a URL. Its errors quote only the scheme, because a password with an unescaped / or ? may be
// anywhere after it.
func parseRedisURL(text string) (target, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return target{}, errors.New("the redis url has no scheme; write redis://HOST:6379")
	}
	base, modeName, _ := strings.Cut(scheme, "+")
	mode, ok := redisModes[modeName]
	if !ok || base != "redis" && base != "rediss" && scheme != "unix" {
		return target{}, fmt.Errorf(
			"redis url scheme %q is not known; use redis, rediss, redis+sentinel, redis+cluster or unix", scheme,
		)
	}
	u, hosts, err := splitRedisURL(rest)
	if err != nil {
		return target{}, err
	}
	t := target{tls: base == "rediss", options: &redis.UniversalOptions{Protocol: 3}, open: mode.open}
	t.setUsers(u)
	path := strings.FieldsFunc(u.Path, func(r rune) bool { return r == '/' })
	if scheme == "unix" {
		t.options.Addrs, path = []string{u.Path}, nil
	} else if t.options.Addrs, err = addresses(hosts, mode.port); err != nil {
		return target{}, err
	}
	t.name = "redis at " + strings.Join(t.options.Addrs, ", ")
	if modeName == "sentinel" {
		if len(path) == 0 {
			return target{}, errors.New("the redis url names no master; write redis+sentinel://HOST:26379/MASTER")
		}
		t.options.MasterName, path = path[0], path[1:]
		t.name = fmt.Sprintf("redis master %q of the sentinels at %s", t.options.MasterName,
			strings.Join(t.options.Addrs, ", "))
	}
	if err := t.setDatabase(path, u.Query()); err != nil {
		return target{}, err
	}
	if modeName == "cluster" && t.options.DB != 0 {
		return target{}, errRedisPath
	}
	return t, checkRedisOptions(u.Query())
}

var errRedisPath = errors.New("the redis url's path has unexpected parts; see docs/redis.md")

// splitRedisURL separates the hosts from the part after the scheme, because net/url rejects a list of hosts.
func splitRedisURL(rest string) (u *url.URL, hosts string, err error) {
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	hosts = authority[strings.LastIndexByte(authority, '@')+1:]
	if u, err = url.Parse("redis://" + strings.TrimSuffix(authority, hosts) + "host" + tail); err != nil {
		return nil, "", errors.New("the redis url cannot be parsed; percent-encode special characters in the password")
	}
	return u, hosts, nil
}

func (t *target) setUsers(u *url.URL) {
	t.options.Username = u.User.Username()
	t.options.Password, _ = u.User.Password()
	t.options.SentinelUsername, t.options.SentinelPassword = u.Query().Get("sentinel_user"),
		u.Query().Get("sentinel_password")
}

// setDatabase sets the database from the rest of the path, or from the option.
func (t *target) setDatabase(path []string, options url.Values) (err error) {
	database := options.Get("db")
	switch len(path) {
	case 0:
	case 1:
		database = path[0]
	default:
		return errRedisPath
	}
	if database == "" {
		return nil
	}
	if t.options.DB, err = strconv.Atoi(database); err != nil || t.options.DB < 0 {
		return errors.New("the redis url's database is not a number; percent-encode special characters in the password")
	}
	return nil
}

func checkRedisOptions(options url.Values) error {
	for name := range options {
		if !slices.Contains([]string{"db", "sentinel_user", "sentinel_password"}, name) {
			return errors.New("the redis url has an option other than db, sentinel_user and sentinel_password; see docs/redis.md")
		}
	}
	return nil
}

func addresses(hosts, port string) (all []string, err error) {
	for host := range strings.SplitSeq(hosts, ",") {
		address, err := hostPort(host, port)
		if err != nil {
			return nil, err
		}
		all = append(all, address)
	}
	return all, nil
}

func hostPort(host, port string) (string, error) {
	name := host
	if h, p, err := net.SplitHostPort(host); err == nil {
		name, port = h, p
	}
	name = strings.Trim(name, "[]")
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 || name == "" ||
		strings.ContainsAny(name, " @") {
		return "", errors.New("the redis url names no valid host and port; write redis://HOST:6379")
	}
	return net.JoinHostPort(name, port), nil
}

// OnThisMachine reports whether a URL for [Config] names only this machine: a socket, or loopback addresses. An empty
// URL, which means an embedded Redis, does too.
func OnThisMachine(url string) bool {
	if url == "" || strings.HasPrefix(url, "unix://") {
		return true
	}
	t, err := parseRedisURL(url)
	return err == nil && !slices.ContainsFunc(t.options.Addrs, func(address string) bool {
		host, _, _ := net.SplitHostPort(address)
		ip := net.ParseIP(host)
		return host != "localhost" && (ip == nil || !ip.IsLoopback())
	})
}
