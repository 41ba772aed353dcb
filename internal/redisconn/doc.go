// Package redisconn opens Redis clients: for one server, Sentinel, Cluster, a socket, or an embedded Redis. Every
// command has a timeout, and every error names the server and what to do about it.
package redisconn
