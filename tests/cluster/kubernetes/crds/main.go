// Crds takes the custom resource definitions out of the zip of Gateway API's module: ZIP OUT.
package main

import (
	"archive/zip"
	"io"
	"log"
	"os"
	"path"
	"path/filepath"
	"strings"
)

func main() {
	log.SetFlags(0)
	archive, err := zip.OpenReader(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer archive.Close()
	for _, file := range archive.File {
		channel := path.Base(path.Dir(file.Name))
		definitions := strings.HasSuffix(path.Dir(file.Name), "/config/crd/"+channel)
		// What is beside them, kustomization.yaml, is no object.
		if definitions && strings.HasPrefix(path.Base(file.Name), "gateway") {
			if err := unpack(file, filepath.Join(os.Args[2], channel)); err != nil {
				log.Fatal(err)
			}
		}
	}
}

func unpack(file *zip.File, folder string) error {
	source, err := file.Open()
	if err != nil {
		return err
	}
	defer source.Close()
	content, err := io.ReadAll(source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, path.Base(file.Name)), content, 0o644)
}
