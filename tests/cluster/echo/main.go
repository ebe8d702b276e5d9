// Echo answers every request with one line: -text LINE -listen ADDRESS.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"time"
)

func main() {
	text := flag.String("text", "hello", "the line")
	listen := flag.String("listen", ":5678", "where to listen")
	flag.Parse()
	server := http.Server{
		Addr:              *listen,
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(answer, *text)
		}),
	}
	log.Fatal(server.ListenAndServe())
}
