//! A Markdown file, as far as the tests look into it.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::collections::BTreeMap;

pub struct Page {
    pub path: String,
    /// `code` of the running text, with its line; blocks of code are not among them.
    pub spans: Vec<(usize, String)>,
    /// Where links and images point, with the line.
    pub links: Vec<(usize, String)>,
    /// Names that GitHub gives to the headings.
    pub anchors: Vec<String>,
    pub text: String,
}

pub fn pages() -> Vec<Page> {
    super::files_in(&[""], &["md"]).into_iter().map(|path| Page::parse(path.clone(), super::read(&path))).collect()
}

impl Page {
    pub fn parse(path: String, text: String) -> Page {
        let mut page = Page { path, spans: Vec::new(), links: Vec::new(), anchors: Vec::new(), text: String::new() };
        let mut heading: Option<String> = None;
        let mut in_block = false;
        let mut seen = BTreeMap::new();
        for (event, range) in Parser::new_ext(&text, Options::ENABLE_TABLES).into_offset_iter() {
            let line = text[..range.start].matches('\n').count() + 1;
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.anchors.push(unique(slug(&heading.take().unwrap_or_default()), &mut seen))
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push((line, dest_url.to_string()))
                }
                Event::Start(Tag::CodeBlock(_)) => in_block = true,
                Event::End(TagEnd::CodeBlock) => in_block = false,
                Event::Code(code) => {
                    heading.iter_mut().for_each(|h| h.push_str(&code));
                    page.spans.push((line, code.to_string()));
                }
                Event::Text(piece) if !in_block => heading.iter_mut().for_each(|h| h.push_str(&piece)),
                Event::Html(html) | Event::InlineHtml(html) => {
                    for attribute in ["src=\"", "srcset=\"", "href=\""] {
                        page.links.extend(
                            html.split(attribute)
                                .skip(1)
                                .map(|rest| (line, rest.split('"').next().unwrap_or_default().to_string())),
                        );
                    }
                }
                _ => {}
            }
        }
        page.text = text;
        page
    }
}

/// GitHub's rule for the anchor of a heading.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

fn unique(slug: String, seen: &mut BTreeMap<String, usize>) -> String {
    let count = seen.entry(slug.clone()).or_insert(0);
    *count += 1;
    if *count == 1 { slug } else { format!("{slug}-{}", *count - 1) }
}

#[test]
fn a_page_is_read_as_github_reads_it() {
    let text = "# The C, in `short`\n[a](b.md#c) ![d](e.svg)\n<img src=\"f.svg\">\n\n```\n[no](no)\n```\n## x\n## x\n";
    let page = Page::parse("p.md".into(), text.into());
    assert_eq!(page.anchors, ["the-c-in-short", "x", "x-1"]);
    assert_eq!(page.spans, [(1, "short".to_string())]);
    assert_eq!(page.links.iter().map(|(_, to)| to.as_str()).collect::<Vec<_>>(), ["b.md#c", "e.svg", "f.svg"]);
}
