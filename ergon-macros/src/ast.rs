//! What our attributes stand on, parsed as far as the macros need it.
//!
//! Bodies stay tokens: nothing here reads them as a tree, so none is built.

use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{
    Attribute, DeriveInput, Error, ImplItem, ItemImpl, Path, Result, Signature, Token, Visibility,
    parse::{Parse, ParseStream, Parser},
};

/// What `#[flow_type]` was found on.
pub(crate) enum Target {
    /// A struct, an enum, or a union.
    Type(DeriveInput),
    Impl(FlowImpl),
    /// Something else, with the word that says what.
    Other(TokenTree),
}

impl Target {
    pub(crate) fn parse(item: TokenStream) -> Result<Self> {
        let word = Self::keyword.parse2(item.clone())?;
        match word.to_string().as_str() {
            "struct" | "enum" | "union" => syn::parse2(item).map(Self::Type),
            "impl" => FlowImpl::parse(item).map(Self::Impl),
            _ => Ok(Self::Other(word)),
        }
    }

    /// The word that tells what kind of item this is.
    pub(crate) fn keyword(input: ParseStream<'_>) -> Result<TokenTree> {
        input.call(Attribute::parse_outer)?;
        input.parse::<Visibility>()?;
        if input.peek(Token![unsafe]) && input.peek2(Token![impl]) {
            input.parse::<Token![unsafe]>()?;
        }
        let word = input.parse()?;
        input.parse::<TokenStream>()?;
        Ok(word)
    }
}

/// An impl block with `#[flow_type]` on it.
pub(crate) struct FlowImpl {
    /// The impl without its members.
    pub(crate) header: ItemImpl,
    pub(crate) members: Vec<Member>,
    /// The braces, for their spans.
    braces: Group,
}

/// Something inside the impl.
pub(crate) enum Member {
    /// A method with `#[flow]` or `#[step]` on it, or with several of those.
    Marked(Method),
    /// A marker on something that is not a method.
    Misplaced(Marker, TokenStream),
    /// Anything else, as it was written.
    Other(TokenStream),
}

/// One `#[flow]` or `#[step]`.
pub(crate) struct Marker {
    pub(crate) kind: MarkerKind,
    pub(crate) attribute: Attribute,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkerKind {
    Flow,
    Step,
}

impl Marker {
    fn new(attribute: &Attribute) -> Option<Self> {
        let kind = match our_attribute(attribute.path())?.to_string().as_str() {
            "flow" => MarkerKind::Flow,
            "step" => MarkerKind::Step,
            _ => return None,
        };
        Some(Self { kind, attribute: attribute.clone() })
    }
}

/// The last word of `step`, `ergon::step` or `::ergon::step`.
fn our_attribute(path: &Path) -> Option<&Ident> {
    let mut segments = path.segments.iter();
    match (segments.next()?, segments.next(), segments.next()) {
        (name, None, None) => Some(&name.ident),
        (root, Some(name), None) if root.ident == "ergon" => Some(&name.ident),
        _ => None,
    }
}

/// A function with a body.
#[derive(Clone)]
pub(crate) struct Method {
    /// The attributes that are not ours.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    pub(crate) body: Group,
    markers: Vec<Attribute>,
}

impl Method {
    pub(crate) fn markers(&self) -> impl Iterator<Item = Marker> {
        self.markers.iter().filter_map(Marker::new)
    }
}

impl Parse for Method {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let (markers, attrs) = attributes.into_iter().partition(|attribute| Marker::new(attribute).is_some());
        let vis = input.parse()?;
        let sig: Signature = input.parse()?;
        let body = match input.parse()? {
            TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => body,
            other => return Err(Error::new(other.span(), "expected a body in `{ … }`")),
        };
        Ok(Self { attrs, vis, sig, body, markers })
    }
}

/// The method as it was written, without our attributes.
impl ToTokens for Method {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let Self { attrs, vis, sig, body, .. } = self;
        tokens.extend(quote!(#(#attrs)* #vis #sig #body));
    }
}

impl FlowImpl {
    fn parse(item: TokenStream) -> Result<Self> {
        let mut trees: Vec<TokenTree> = item.into_iter().collect();
        let Some(TokenTree::Group(braces)) = trees.pop() else {
            return Err(Error::new(proc_macro2::Span::call_site(), "expected an impl block"));
        };
        let mut empty = Group::new(braces.delimiter(), TokenStream::new());
        empty.set_span(braces.span());
        trees.push(empty.into());
        let mut header: ItemImpl = syn::parse2(trees.into_iter().collect())?;
        let body = |input: ParseStream<'_>| {
            header.attrs.extend(input.call(Attribute::parse_inner)?);
            let mut members = Vec::new();
            while !input.is_empty() {
                members.push(Member::parse(input)?);
            }
            Ok(members)
        };
        let members = body.parse2(braces.stream())?;
        Ok(Self { header, members, braces })
    }

    /// One marker of each kind that stands in the impl.
    pub(crate) fn markers(&self) -> impl Iterator<Item = Marker> {
        let all = || {
            self.members.iter().flat_map(|member| match member {
                Member::Marked(method) => method.markers().collect(),
                Member::Misplaced(..) | Member::Other(_) => Vec::new(),
            })
        };
        [MarkerKind::Flow, MarkerKind::Step]
            .into_iter()
            .filter_map(move |kind| all().find(|marker| marker.kind == kind))
    }

    /// The impl block with other members.
    pub(crate) fn with_members(&self, members: &TokenStream) -> TokenStream {
        let ItemImpl { attrs, modifiers, unsafety, impl_token, generics, trait_, self_ty, .. } = &self.header;
        let (inner, outer): (Vec<&Attribute>, Vec<&Attribute>) =
            attrs.iter().partition(|attribute| matches!(attribute.style, syn::AttrStyle::Inner(_)));
        let default = &modifiers.defaultness;
        let negative = &modifiers.polarity;
        let of = trait_.as_ref().map(|(path, word)| quote!(#path #word));
        let (params, where_clause) = (generics, &generics.where_clause);
        let mut braces = Group::new(Delimiter::Brace, quote!(#(#inner)* #members));
        braces.set_span(self.braces.span());
        quote! {
            #(#outer)*
            #default #unsafety #impl_token #params #negative #of #self_ty #where_clause
            #braces
        }
    }

    /// The impl block as it was written, without our attributes.
    pub(crate) fn plain(&self) -> TokenStream {
        let members = &self.members;
        self.with_members(&quote!(#(#members)*))
    }
}

impl Member {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if let Ok(method) = input.fork().parse::<Method>() {
            input.parse::<Method>()?;
            return Ok(if method.markers.is_empty() {
                Self::Other(method.into_token_stream())
            } else {
                Self::Marked(method)
            });
        }
        let attributes = input.fork().call(Attribute::parse_outer)?;
        let Some(marker) = attributes.iter().find_map(Marker::new) else {
            return Ok(Self::Other(input.parse::<ImplItem>()?.into_token_stream()));
        };
        input.call(Attribute::parse_outer)?;
        let item: ImplItem = input.parse()?;
        let others = attributes.iter().filter(|attribute| Marker::new(attribute).is_none());
        Ok(Self::Misplaced(marker, quote!(#(#others)* #item)))
    }
}

impl ToTokens for Member {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        match self {
            Self::Marked(method) => method.to_tokens(tokens),
            Self::Misplaced(_, item) | Self::Other(item) => item.to_tokens(tokens),
        }
    }
}
