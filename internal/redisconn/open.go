package redisconn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// DefaultTimeout limits a dial and every command, including its retries.
const DefaultTimeout = 2 * time.Second

// Config describes a Redis. URL or Embedded is required.
type Config struct {
	// Embedded is a Redis of this process, instead of one at URL.
	Embedded *Embedded

	// URL is one of
	//
	//	redis://[USER:PASSWORD@]HOST[:6379][/DB]                             one server
	//	redis+sentinel://[USER:PASSWORD@]HOST[:26379][,HOST...]/MASTER[/DB]  the master that these Sentinels name
	//	redis+cluster://[USER:PASSWORD@]HOST[:6379][,HOST...]                a cluster with these seeds
	//	unix://[USER:PASSWORD@]/PATH[?db=DB]                                 a socket
	// With rediss instead of redis, the connection uses TLS. ?sentinel_user= and ?sentinel_password= log in to
	// Sentinels.
	URL      string
	Timeout  time.Duration // of a dial and of a command; default [DefaultTimeout]
	CAFile   string        // PEM; default the system's roots
	CertFile string        // PEM; a client certificate, with KeyFile
	KeyFile  string        // PEM
}

// Open returns a client for config. It validates config, but the first command dials. Every error of the client except
// redis.Nil is a [*Error]. The caller closes the client.
func Open(config Config) (redis.UniversalClient, error) {
	if config.Timeout == 0 {
		config.Timeout = DefaultTimeout
	}
	var target target
	if config.Embedded != nil {
		target = config.Embedded.target()
	} else {
		var err error
		if target, err = parseRedisURL(config.URL); err != nil {
			return nil, err
		}
	}
	options := target.options
	if target.tls {
		var err error
		if options.TLSConfig, err = config.tls(); err != nil {
			return nil, err
		}
	} else if config.CAFile != "" || config.CertFile != "" {
		return nil, errors.New("redis certificates are given but the redis url says no TLS; write rediss:// for redis://")
	}
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = config.Timeout, config.Timeout, config.Timeout
	options.ContextTimeoutEnabled = true
	options.DialerRetries = 1 // retried commands dial again
	options.MaxRetries = 2
	// A new connection needs only the round trip of HELLO. Buffers fit our commands, and pipelines share connections.
	options.DisableIdentity = true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	options.ReadBufferSize, options.WriteBufferSize = 4096, 4096
	options.PipelinePoolSize = -1

	logging.Disable() // go-redis would also print the errors that it returns
	client, bound := target.open(options), boundary{server: target.name, timeout: config.Timeout, tls: target.tls}
	client.AddHook(bound)
	if nodes, ok := client.(*redis.ClusterClient); ok {
		return Cluster{nodes, bound}, nil
	}
	return client, nil
}

// Cluster is a client of a cluster. It also adds timeouts and explanations to the clients of nodes, because go-redis
// gives those no hooks.
type Cluster struct {
	*redis.ClusterClient
	boundary boundary
}

// MasterForKey overrides the method of ClusterClient.
func (c Cluster) MasterForKey(ctx context.Context, key string) (*redis.Client, error) {
	master, err := c.ClusterClient.MasterForKey(ctx, key)
	if err != nil {
		return nil, c.boundary.explain(err)
	}
	master.AddHook(c.boundary)
	return master, nil
}

// Watch overrides the method of ClusterClient. It returns errors of fn unchanged.
func (c Cluster) Watch(ctx context.Context, fn func(*redis.Tx) error, keys ...string) error {
	ctx, cancel := context.WithTimeout(ctx, c.boundary.timeout)
	defer cancel()
	var failed error
	err := c.ClusterClient.Watch(ctx, func(tx *redis.Tx) error {
		tx.AddHook(c.boundary)
		failed = fn(tx)
		return failed
	}, keys...)
	if failed != nil {
		return failed
	}
	return c.boundary.explain(err)
}

func (c Config) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the redis CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("redis CA %q contains no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" || c.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the redis client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
