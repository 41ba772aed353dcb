// Package page tests the page and the reports of executions in a real Chromium.
package page
