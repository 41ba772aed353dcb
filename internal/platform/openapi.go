package platform

import (
	_ "embed"
	"fmt"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/goccy/go-yaml"
)

//go:embed openapi.yaml
var openAPIText []byte

// openAPIDocument returns the description of the API (OpenAPI 3.1) as JSON.
func openAPIDocument() ([]byte, error) {
	document, err := yaml.YAMLToJSON(openAPIText)
	if err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	return document, nil
}

// readOpenAPI serves the description without authentication.
func (p *Platform) readOpenAPI(c *gin.Context) { c.Data(http.StatusOK, "application/json", p.openAPI) }
