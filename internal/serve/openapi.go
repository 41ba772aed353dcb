package serve

import (
	_ "embed"
	"sync"

	"github.com/goccy/go-yaml"
)

//go:embed openapi.yaml
var openAPIText []byte

// openAPI returns the description of the API (OpenAPI 3.1) as JSON. A test compares it with the routes.
var openAPI = sync.OnceValues(func() ([]byte, error) { return yaml.YAMLToJSON(openAPIText) })
